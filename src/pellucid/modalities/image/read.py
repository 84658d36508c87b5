"""One picture, from a file, from Pillow or from an array, as upright 8-bit RGB.

- The first bytes decide what a file is, never its name; only formats that Pillow decodes inside this process are read
  (EPS would start Ghostscript).
- Pillow's readers are called directly: `Image.open` measures the size against a global limit, with a warning, and takes
  the hidden second view of a phone's photo (MPO) for a second frame.
- Whatever changes the pixels beyond decoding and turning them upright is said in the notes.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from pellucid.core.checks import check_count
from pellucid.errors import ArgumentError, InputError, PellucidError
from pellucid.modalities.image.colour import reason, to_srgb

__all__ = ["Picture", "PictureSource", "read_picture"]

PictureSource = str | os.PathLike[str] | Image.Image | np.ndarray

_HEAD = 1024  # bytes that are enough to tell what a file is
_FORMATS = "JPEG, PNG, GIF, BMP, WebP, TIFF, PPM, JPEG 2000 and AVIF"
_READERS: dict[bytes, type[ImageFile.ImageFile]] = {
    rb"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    rb"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    rb"GIF8[79]a": GifImagePlugin.GifImageFile,
    rb"BM": BmpImagePlugin.BmpImageFile,
    rb"RIFF.{4}WEBP": WebPImagePlugin.WebPImageFile,
    rb"II[*+]\0(?!.{4}CR)|MM\0[*+]": TiffImagePlugin.TiffImageFile,
    rb"P[1-6f][\s#]": PpmImagePlugin.PpmImageFile,
    rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n": Jpeg2KImagePlugin.Jpeg2KImageFile,
    rb".{4}ftyp.{0,64}?avi[fs]": AvifImagePlugin.AvifImageFile,
}
_OTHERS = {  # what else people take for a picture
    rb".{4}ftyp(hei|hev|mif1|msf1)": "an HEIC photo",
    rb".{4}ftyp": "a video",
    rb"%PDF": "a PDF document",
    rb"%!PS|\xc5\xd0\xd3\xc6": "an EPS or PostScript drawing",
    rb"(?i)\s*<(!doctype )?html": "a web page, saved in place of the picture",
    rb".*<svg[\s>]": "an SVG drawing",
    rb"II([*U]\0|R[OS])|FUJIFILM": "a camera's raw file",
    rb".{128}DICM": "a DICOM file",
    rb"\x93NUMPY": "a NumPy file, for numpy.load",
    rb"[\t\n\r -~\x80-\xff]+\Z": "a text file",
    rb"\Z": "empty (0 bytes)",
}


@dataclass(frozen=True, eq=False)
class Picture:
    """Upright RGB pixels. `name` is the path as it was given, "picture" (Pillow) or "array".

    `notes` say what reading did that a user should know: "frame 1 of 12", "transparent parts on white".
    """

    name: str
    pixels: UInt8[np.ndarray, "h w 3"]
    notes: tuple[str, ...] = ()


def read_picture(source: PictureSource, *, max_pixels: int = 100_000_000) -> Picture:
    """The picture that `source` shows, its colours as sRGB; of several frames the first, or Pillow's current one.

    An array is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4): uint8, uint16, or floating point from 0 to 1. `max_pixels`
    is compared with the size that a file or Pillow picture states, before anything is decoded.

    Example:
        >>> import numpy as np
        >>> picture = read_picture(np.array([[0.0, 0.5, 1.0]]))
        >>> picture.pixels.shape, picture.pixels[0, :, 0].tolist(), picture.notes
        ((1, 3, 3), [0, 128, 255], ('fractions rounded to 8 bits',))

    Raises:
        ArgumentError: `source` is none of these, or `max_pixels` is no positive whole number.
        InputError: the file cannot be read or is no picture, or the array is none. One line, with what to do.
    """
    check_count("max_pixels", max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        with _decoding("The picture", "Pass it whole, before its file is closed, or pass the path."):
            return _from_pillow(source, "picture", "The picture", max_pixels)
    if isinstance(source, str | os.PathLike):
        return _from_file(os.fspath(source), max_pixels)
    raise ArgumentError(
        f"A picture is a path, a PIL.Image or a numpy array (height, width, 3). Got {type(source).__name__}. "
        "Of a tensor (3, H, W) pass x.permute(1, 2, 0).numpy(), of bytes PIL.Image.open(io.BytesIO(data))."
    )


def _from_array(array: np.ndarray) -> Picture:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or array.size == 0:
        channels_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = "Write array.transpose(1, 2, 0)." if channels_first else "Pass one picture, channels last."
        raise InputError(f"A picture is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). Got {array.shape}. {hint}")
    notes: list[str] = []
    eight = _eight_bits(array, "The array", notes)
    image = Image.fromarray(np.ascontiguousarray(eight[..., 0] if eight.shape[2:] == (1,) else eight))
    return Picture("array", np.array(to_srgb(image, notes)), tuple(notes))


def _from_file(path: str, max_pixels: int) -> Picture:
    try:
        # a pipe would block, a device may never end
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise InputError(f"{path!r} is a folder or a device. Pass the path of one picture.")
        with Path(path).open("rb") as file:
            reader = _reader(file.read(_HEAD), path)
            file.seek(0)
            with _decoding(repr(path), "Damaged, incomplete, too large or of a rare kind: export it again as PNG."):
                return _from_pillow(reader(file), path, repr(path), max_pixels)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path!r} cannot be opened ({reason(error)}). Check the path and the permission to read it."
        ) from error


def _reader(head: bytes, path: str) -> type[ImageFile.ImageFile]:
    for magic, reader in _READERS.items():
        if re.match(magic, head, re.DOTALL):
            return reader
    is_ = next((other for magic, other in _OTHERS.items() if re.match(magic, head, re.DOTALL)), "of an unknown kind")
    raise InputError(f"{path!r} is {is_}. Expected {_FORMATS}. Check the path, or convert it to PNG or JPEG.")


@contextmanager
def _decoding(subject: str, to_do: str) -> Iterator[None]:
    try:
        yield
    except (PellucidError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes Pillow's parsers raise nearly anything, AssertionError included
        raise InputError(f"{subject} cannot be decoded ({reason(error)}). {to_do}") from error


def _from_pillow(image: Image.Image, name: str, subject: str, max_pixels: int) -> Picture:
    width, height = image.size
    if not 0 < width * height <= max_pixels:
        raise InputError(
            f"{subject} is {width} x {height} pixels. Expected 1 to `max_pixels` = {max_pixels} of them: make it "
            "smaller, or allow more for a file that you trust."
        )
    notes = _notes_before_decoding(image)
    _check_white(image, subject)
    image.load()
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception as error:  # noqa: BLE001  # as above, and the pixels are sound
        notes.append(f"EXIF data unreadable ({reason(error)}): not turned")
        upright = image
    if upright.mode == "F" or upright.mode.startswith("I"):
        upright = _narrowed(upright, subject, notes)
    return Picture(name, np.array(to_srgb(upright, notes)), tuple(notes))


def _notes_before_decoding(image: Image.Image) -> list[str]:
    notes = []
    try:
        count = getattr(image, "n_frames", 1)
    except ValueError:  # decoded and then closed: the frames can no longer be counted
        count = 1
    if count > 1 and (image.format != "MPO" or image.tell()):
        notes.append(f"frame {image.tell() + 1} of {count}")
    if getattr(image, "tag_v2", {}).get(ExifTags.Base.NewSubfileType, 0) & 1:
        notes.append("a reduced copy, beside a larger picture in the same file")
    if not image.mode.startswith("I") and any(";16" in str(tile.args) for tile in getattr(image, "tile", ())):
        notes.append("16 bits a channel reduced to 8")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        notes.append("read with Pillow's LOAD_TRUNCATED_IMAGES set: missing parts would be grey")
    return notes


def _check_white(image: Image.Image, subject: str) -> None:
    tags = getattr(image, "tag_v2", {})
    # Pillow hands on 4095 for white of 12 bits, and 0 where the file says so; PGM it scales to 16 bits
    odd = tags.get(ExifTags.Base.BitsPerSample) == (12,) or tags.get(ExifTags.Base.PhotometricInterpretation) == 0
    wide = image.mode == "F" or image.mode.startswith("I;16")
    if (wide and odd) or (image.mode == "I" and image.format not in ("PPM", "PNG")):
        raise InputError(
            f"{subject} holds grey values without a white that Pillow knows (mode {image.mode}). Pass an array "
            "scaled from 0 for black to 1 for white."
        )


def _narrowed(image: Image.Image, subject: str, notes: list[str]) -> Image.Image:
    """The 8-bit form of a picture whose single band is wider."""
    values = np.asarray(image) if image.mode == "F" else np.asarray(image).astype(np.uint16)
    narrowed = Image.fromarray(_eight_bits(values, subject, notes))
    if (hidden := image.info.get("transparency")) is not None:
        alpha = np.where(values == hidden, 0, 255).astype(np.uint8)
        narrowed = Image.merge("LA", (narrowed, Image.fromarray(alpha)))
    narrowed.info["icc_profile"] = image.info.get("icc_profile")
    return narrowed


def _eight_bits(values: np.ndarray, subject: str, notes: list[str]) -> UInt8[np.ndarray, "..."]:
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        notes.append("16 bits reduced to 8 by dividing by 257")
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # in this form NaN is refused too
            raise InputError(
                f"{subject} has floating-point values: from 0 for black to 1 for white. Got {low:g} to {high:g}. "
                "Divide values of 8 bits by 255; undo a normalisation."
            )
        notes.append("fractions rounded to 8 bits")
        return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    raise InputError(
        f"{subject} is of uint8, uint16 or a floating-point type from 0 to 1. Got {values.dtype}. "
        "Write array.astype(numpy.uint8) if the values run from 0 to 255."
    )
