# Finds the published headers that the attention is built from:
#   FASTWAN_KERNEL_INCLUDE   attn_qat_infer/blackwell of fastvideo-kernel
#   FASTWAN_CUTLASS_INCLUDE  include folder of CUTLASS 4.2
# In this order: a cache variable or environment variable of the same name, an installed Python
# package, a download from the package index with pinned hashes (cmake/kernel_headers.txt).

set(FASTWAN_KERNEL_VERSION "0.3.5")
# Two files decide the numerics; whatever the source, they must be the ones that were reviewed.
set(_pinned
    "mainloop_tma_ws.h=facbef3fd2c872a1a27f806e034632de0568ff6dd0710fd344b9d758bad60f71"
    "softmax_fused.h=6ab4ed15042150e2d7d6ecdb3519b42bee286820cac25d46defe10d7ee052a0a"
    "kernel_ws.h=5c0d1d4cfc1f2afa5d59dc243ff3fffc13aa7a62b19d854cafc039c07e89534e")

function(_fastwan_from_environment variable)
  if(NOT ${variable} AND DEFINED ENV{${variable}})
    set(${variable} "$ENV{${variable}}" CACHE PATH "" FORCE)
  endif()
endfunction()

# Folder `path` below the installed Python package `package`, without importing it.
function(_fastwan_from_package variable package path probe)
  if(${variable} OR NOT FASTWAN_PYTHON)
    return()
  endif()
  execute_process(
    COMMAND ${FASTWAN_PYTHON} -c
      "import importlib.util as u; s = u.find_spec('${package}'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE root OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(root AND EXISTS "${root}/${path}/${probe}")
    set(${variable} "${root}/${path}" CACHE PATH "" FORCE)
  endif()
endfunction()

function(_fastwan_download folder)
  if(NOT FASTWAN_PYTHON)
    message(FATAL_ERROR "kernel headers not found, and no Python to download them with: "
                        "set FASTWAN_KERNEL_INCLUDE and FASTWAN_CUTLASS_INCLUDE")
  endif()
  message(STATUS "Downloading the kernel headers (30 MB)")
  # The archive is for x86-64, the headers in it are for every host.
  execute_process(
    COMMAND ${FASTWAN_PYTHON} -m pip download --quiet --disable-pip-version-check --no-deps
      --only-binary :all: --implementation cp --python-version 3.12
      --platform manylinux_2_35_x86_64 --require-hashes
      -r ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/kernel_headers.txt -d ${folder}
    RESULT_VARIABLE status ERROR_VARIABLE errors)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "kernel headers could not be downloaded by ${FASTWAN_PYTHON} -m pip; set "
                        "FASTWAN_KERNEL_INCLUDE and FASTWAN_CUTLASS_INCLUDE to do without: ${errors}")
  endif()
  foreach(pair "fastvideo_kernel=attn_qat_infer/blackwell/*"
               "nvidia_cutlass=cutlass_library/source/include/*")
    string(REGEX MATCH "^([^=]+)=(.*)$" _ ${pair})
    set(pattern ${CMAKE_MATCH_2})
    file(GLOB archive ${folder}/${CMAKE_MATCH_1}-*.whl)
    file(ARCHIVE_EXTRACT INPUT ${archive} DESTINATION ${folder} PATTERNS ${pattern})
    file(REMOVE ${archive})
  endforeach()
endfunction()

set(FASTWAN_HEADER_DOWNLOADS ${CMAKE_CURRENT_BINARY_DIR}/kernel_headers CACHE PATH
    "where downloaded headers are kept")
set(_downloads ${FASTWAN_HEADER_DOWNLOADS})
set(_kernel_folder attn_qat_infer/blackwell)
set(_cutlass_folder cutlass_library/source/include)
_fastwan_from_environment(FASTWAN_KERNEL_INCLUDE)
_fastwan_from_environment(FASTWAN_CUTLASS_INCLUDE)
_fastwan_from_package(FASTWAN_KERNEL_INCLUDE attn_qat_infer blackwell kernel_ws.h)
_fastwan_from_package(FASTWAN_CUTLASS_INCLUDE cutlass_library source/include cute/tensor.hpp)
if(NOT FASTWAN_KERNEL_INCLUDE OR NOT FASTWAN_CUTLASS_INCLUDE)
  if(NOT EXISTS ${_downloads}/${_kernel_folder}/kernel_ws.h
     OR NOT EXISTS ${_downloads}/${_cutlass_folder}/cute/tensor.hpp)
    _fastwan_download(${_downloads})
  endif()
  if(NOT FASTWAN_KERNEL_INCLUDE)
    set(FASTWAN_KERNEL_INCLUDE ${_downloads}/${_kernel_folder} CACHE PATH "" FORCE)
  endif()
  if(NOT FASTWAN_CUTLASS_INCLUDE)
    set(FASTWAN_CUTLASS_INCLUDE ${_downloads}/${_cutlass_folder} CACHE PATH "" FORCE)
  endif()
endif()

foreach(pin ${_pinned})
  string(REPLACE "=" ";" pair ${pin})
  list(GET pair 0 name)
  list(GET pair 1 expected)
  if(NOT EXISTS ${FASTWAN_KERNEL_INCLUDE}/${name})
    message(FATAL_ERROR "${FASTWAN_KERNEL_INCLUDE} has no ${name}: "
                        "FASTWAN_KERNEL_INCLUDE must be attn_qat_infer/blackwell")
  endif()
  file(SHA256 ${FASTWAN_KERNEL_INCLUDE}/${name} found)
  if(NOT found STREQUAL expected)
    message(FATAL_ERROR "${FASTWAN_KERNEL_INCLUDE}/${name} is not that of fastvideo-kernel "
                        "${FASTWAN_KERNEL_VERSION}: the numerics were held against that version; "
                        "unset FASTWAN_KERNEL_INCLUDE to download it")
  endif()
endforeach()
if(NOT EXISTS ${FASTWAN_CUTLASS_INCLUDE}/cute/tensor.hpp)
  message(FATAL_ERROR "${FASTWAN_CUTLASS_INCLUDE} has no cute/tensor.hpp: "
                      "FASTWAN_CUTLASS_INCLUDE must be the include folder of CUTLASS 4.2")
endif()
message(STATUS "Kernel headers: ${FASTWAN_KERNEL_INCLUDE}")
message(STATUS "CUTLASS headers: ${FASTWAN_CUTLASS_INCLUDE}")
