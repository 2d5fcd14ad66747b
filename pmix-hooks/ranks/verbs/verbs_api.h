// <infiniband/verbs.h> for the layer: what it declares is visible (libsymvirt_hooks.so is compiled
// hidden, and exports some of these: its map says which), and its macros are out of the way of the
// functions' names.
#pragma once

#pragma GCC visibility push(default)
#include <infiniband/verbs.h>
#pragma GCC visibility pop

#undef ibv_query_port
#undef ibv_reg_mr
#undef ibv_reg_mr_iova
#undef ibv_get_device_list
