"""Builds the native kernels when it can; without a compiler or CMake the package installs and numpy does their work."""

import os
import sys

from scikit_build_core.setuptools.build_cmake import BuildCMake
from setuptools import setup


class BuildNative(BuildCMake):
    """The CMake build, made optional: whatever stops it is said once and the installation goes on."""

    def run(self):
        try:
            super().run()
        except (Exception, SystemExit) as error:
            if os.environ.get("HPCAI_KERNELS") == "required":
                raise
            print(
                f"hpcai: installing without native kernels ({type(error).__name__}: {error}). "
                "Collectives will fold with numpy, which is slower; for the fast path install a C++17 compiler "
                "and CMake, then reinstall.",
                file=sys.stderr,
            )


setup(cmake_source_dir=".", cmdclass={"build_cmake": BuildNative})
