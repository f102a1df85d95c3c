"""Builds the native kernels when it can; without a compiler or CMake the package installs and numpy does their work."""

import os
import sys

from scikit_build_core.setuptools.build_cmake import BuildCMake
from setuptools import setup

WANTED = "a C++17 compiler (g++ or clang++), CMake, and Python's headers (python3-dev)"


class BuildNative(BuildCMake):
    """The CMake build, made optional: whatever stops it is said once and the installation goes on."""

    def run(self):
        required = os.environ.get("HPCAI_KERNELS", "")
        if required not in ("", "required"):
            sys.exit(f"hpcai: HPCAI_KERNELS is required or not set, got {required!r}")
        try:
            super().run()
        except (Exception, SystemExit) as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            if required:
                sys.exit(f"hpcai: HPCAI_KERNELS=required, but the native kernels could not be built; install {WANTED} ({why})")
            print(
                f"hpcai: installing without native kernels: numpy does their work, slower. For the fast path install {WANTED}, "
                f"then reinstall ({why})",
                file=sys.stderr,
            )


setup(cmake_source_dir=".", cmdclass={"build_cmake": BuildNative})
