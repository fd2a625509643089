"""Functions of the standard library as they are: tests replace them, for longer than one test."""

from __future__ import annotations

import os
import time

getpid, getppid, getcwd, chdir = os.getpid, os.getppid, os.getcwd, os.chdir
monotonic, sleep = time.monotonic, time.sleep
