"""Version of the installed package: the one in pyproject.toml."""

from importlib import metadata


def version() -> str:
    """Return the version as in `0.2.0`; `unknown` where the source tree is run without being installed."""
    try:
        return metadata.version("toolwire")
    except metadata.PackageNotFoundError:
        return "unknown"
