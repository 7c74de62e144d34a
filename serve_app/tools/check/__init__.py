"""`camera-edit check`: checks a Serve config file strictly before anything starts."""

from serve_app.tools.check.file import ServeFile, check_file, describe

__all__ = ["ServeFile", "check_file", "describe"]
