"""What the three packages of ToCo share: errors, commands, configuration, palette, files, pages, the manifest.

Light on purpose: nothing here imports torch, so that the serving side runs where torch is not installed.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("toco-seg")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
