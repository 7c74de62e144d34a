"""`camera-edit check`: a Serve file, checked strictly before anything starts."""

from serve_app.tools.check.file import ServeFile, check_file, describe

__all__ = ["ServeFile", "check_file", "describe"]
