"""The colours of a picture as sRGB, on white where it is transparent."""

import io

import numpy as np
from PIL import Image, ImageCms

__all__ = ["reason", "to_srgb"]

_PROFILED = {  # by the colour space of an ICC profile: the mode to convert from, and the modes that may become it
    "RGB ": ("RGB", ("RGB", "RGBX", "P", "YCbCr", "HSV", "L", "1")),
    "GRAY": ("L", ("L", "1")),
    "CMYK": ("CMYK", ("CMYK",)),
}


def to_srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """`image`, of 8 bits, in the colours of sRGB, on white where it is transparent."""
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert(image.mode[:-1])
    colours = _srgb(image, notes)
    if alpha is None or np.asarray(alpha).min() == 255:
        return colours
    notes.append("transparent parts on white")
    return Image.composite(colours, Image.new("RGB", colours.size, "white"), alpha)


def _srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    if data := image.info.get("icc_profile"):
        try:
            return _by_profile(image, ImageCms.ImageCmsProfile(io.BytesIO(data)), notes)
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
            notes.append(f"colour profile not used ({reason(error)})")
    if image.mode in ("CMYK", "LAB"):
        notes.append(f"{image.mode} converted to RGB without a colour profile")
    return image.convert("RGB")


def _by_profile(image: Image.Image, profile: ImageCms.ImageCmsProfile, notes: list[str]) -> Image.Image:
    space = profile.profile.xcolor_space
    mode, modes = _PROFILED.get(space, ("", ()))
    if image.mode not in modes:
        raise ValueError(f"it is for {space.strip()}, the pixels are {image.mode}")
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode != "CMYK" and _moves_nothing(transform, mode):
        return image.convert("RGB")
    description = " ".join((profile.profile.profile_description or "without a name").split())
    notes.append(f"colours converted to sRGB from the profile {description!r}")
    return transform.apply(image.convert(mode))


def _moves_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether the profile is sRGB, whatever its name: then rounding, up to 2 levels, must not touch the pixels."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    before = Image.fromarray(grid).convert(mode)
    moved = np.asarray(transform.apply(before)).astype(int) - np.asarray(before.convert("RGB"))
    return bool(np.abs(moved).max() <= 2)


def reason(error: Exception) -> str:
    """What Pillow says is wrong, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__
