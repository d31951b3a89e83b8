// SPDX-License-Identifier: Apache-2.0
// What the bounded, threaded run of the engine learnt, for a test that calls it from Python.
#include "dataflow.hpp"

// The streams that blocked, empty if none did.
extern "C" const char* bbs_blocked() { return bbs::Watchdog::instance().blocked.c_str(); }
