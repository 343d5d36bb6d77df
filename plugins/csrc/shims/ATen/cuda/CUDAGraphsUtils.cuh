// Stands in for PyTorch's header; the attention's params.h uses nothing of it.
#pragma once
