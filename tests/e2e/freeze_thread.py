#!/usr/bin/env python3
"""Stops one thread of a process for a while, as a starved one is; the others run on. For tests.

usage: freeze_thread.py TID SECONDS

Prints "frozen" when it is. As root; the thread goes on when this ends, however it ends.
"""
import ctypes
import os
import sys
import time

PTRACE_INTERRUPT = 0x4207
PTRACE_SEIZE = 0x4206

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request, tid):
    if libc.ptrace(request, tid, None, None) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


tid, seconds = int(sys.argv[1]), float(sys.argv[2])
ptrace(PTRACE_SEIZE, tid)
ptrace(PTRACE_INTERRUPT, tid)
os.waitpid(tid, 0x40000000)  # __WALL
print("frozen", flush=True)
time.sleep(seconds)
