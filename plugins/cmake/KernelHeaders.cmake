# Finds the published headers that the attention is built from:
#   FASTWAN_KERNEL_INCLUDE      attn_qat_infer/blackwell of fastvideo-kernel
#   FASTWAN_FLASHINFER_INCLUDE  flashinfer/data/include of flashinfer-python
#   FASTWAN_CUTLASS_INCLUDE     include folder of CUTLASS 4.2
# In this order: a cache variable or environment variable of the same name, an installed Python
# package, a download from the package index with pinned hashes (cmake/kernel_headers.txt).

set(FASTWAN_KERNEL_VERSION "0.3.5")
set(FASTWAN_FLASHINFER_VERSION "0.7.2.post1")
# These decide the numerics; whatever the source, they must be the ones that were reviewed.
set(_pinned_kernel
    "mainloop_tma_ws.h=facbef3fd2c872a1a27f806e034632de0568ff6dd0710fd344b9d758bad60f71"
    "softmax_fused.h=6ab4ed15042150e2d7d6ecdb3519b42bee286820cac25d46defe10d7ee052a0a"
    "kernel_ws.h=5c0d1d4cfc1f2afa5d59dc243ff3fffc13aa7a62b19d854cafc039c07e89534e")
set(_flashinfer_attention flashinfer/attention/sm120/nvfp4_attention_sm120)
set(_pinned_flashinfer
    "${_flashinfer_attention}/compute/mainloop.cuh=0c36b7ecf8ed705ca9b852560a4dba17840b0bf494f50fd8511d3f8f77268f5e"
    "${_flashinfer_attention}/compute/consumer/softmax.cuh=57fa09d6e5884abe2b9ce94f492d1a222ce6e6bddbc3ab364818a6d913d12cb6"
    "${_flashinfer_attention}/kernel/attention_kernel.h=2b0b243876f98aff40d7c5b6f392916ff8d30e4d1ad31a8e9c282668ed382031")

set(_folders "FASTWAN_KERNEL_INCLUDE, FASTWAN_FLASHINFER_INCLUDE and FASTWAN_CUTLASS_INCLUDE")

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
                        "set ${_folders}")
  endif()
  message(STATUS "Downloading the kernel headers (92 MB)")
  # The archive is for x86-64, the headers in it are for every host.
  execute_process(
    COMMAND ${FASTWAN_PYTHON} -m pip download --quiet --disable-pip-version-check --no-deps
      --only-binary :all: --implementation cp --python-version 3.12
      --platform manylinux_2_35_x86_64 --require-hashes
      -r ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/kernel_headers.txt -d ${folder}
    RESULT_VARIABLE status ERROR_VARIABLE errors)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "kernel headers could not be downloaded by ${FASTWAN_PYTHON} -m pip; set "
                        "${_folders} to do without: ${errors}")
  endif()
  foreach(pair "fastvideo_kernel=attn_qat_infer/blackwell/*"
               "flashinfer_python=flashinfer/data/include/*"
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
set(_KERNEL attn_qat_infer/blackwell kernel_ws.h)
set(_FLASHINFER flashinfer/data/include ${_flashinfer_attention}/kernel/attention_kernel.h)
set(_CUTLASS cutlass_library/source/include cute/tensor.hpp)
set(_missing)
foreach(name KERNEL FLASHINFER CUTLASS)
  list(GET _${name} 0 _path)
  list(GET _${name} 1 _probe)
  string(REGEX MATCH "^([^/]+)/(.*)$" _ ${_path})
  _fastwan_from_environment(FASTWAN_${name}_INCLUDE)
  _fastwan_from_package(FASTWAN_${name}_INCLUDE ${CMAKE_MATCH_1} ${CMAKE_MATCH_2} ${_probe})
  if(NOT FASTWAN_${name}_INCLUDE)
    if(NOT EXISTS ${_downloads}/${_path}/${_probe})
      list(APPEND _missing ${name})
    endif()
    set(FASTWAN_${name}_INCLUDE ${_downloads}/${_path} CACHE PATH "" FORCE)
  endif()
endforeach()
if(_missing)
  _fastwan_download(${_downloads})
endif()

function(_fastwan_check_pinned variable package pinned)
  foreach(pin ${pinned})
    string(REPLACE "=" ";" pair ${pin})
    list(GET pair 0 name)
    list(GET pair 1 expected)
    if(NOT EXISTS ${${variable}}/${name})
      message(FATAL_ERROR "${${variable}} has no ${name}: ${variable} must be that of ${package}")
    endif()
    file(SHA256 ${${variable}}/${name} found)
    if(NOT found STREQUAL expected)
      message(FATAL_ERROR "${${variable}}/${name} is not that of ${package}: the numerics were held "
                          "against that version; unset ${variable} to download it")
    endif()
  endforeach()
endfunction()

_fastwan_check_pinned(FASTWAN_KERNEL_INCLUDE "fastvideo-kernel ${FASTWAN_KERNEL_VERSION}"
                      "${_pinned_kernel}")
_fastwan_check_pinned(FASTWAN_FLASHINFER_INCLUDE "flashinfer-python ${FASTWAN_FLASHINFER_VERSION}"
                      "${_pinned_flashinfer}")
if(NOT EXISTS ${FASTWAN_CUTLASS_INCLUDE}/cute/tensor.hpp)
  message(FATAL_ERROR "${FASTWAN_CUTLASS_INCLUDE} has no cute/tensor.hpp: "
                      "FASTWAN_CUTLASS_INCLUDE must be the include folder of CUTLASS 4.2")
endif()
message(STATUS "Kernel headers: ${FASTWAN_KERNEL_INCLUDE} and ${FASTWAN_FLASHINFER_INCLUDE}")
message(STATUS "CUTLASS headers: ${FASTWAN_CUTLASS_INCLUDE}")
