"""The picture that the documented examples send, so that they can be tried as they stand."""

PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQMAAAD+wSzIAAAABlBMVEV4quZajEbiNzc0AAAAEklEQVR42mNggIL/TAxMDEwMAAch"
    "AQb/4qmaAAAAAElFTkSuQmCC"
)
"""A PNG of 8 x 8 pixels, blue over green, in base64."""
