"""Reading a picture: each odd file is built here, and its upright 8-bit RGB is known by hand."""

import inspect
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from pellucid.errors import ArgumentError, InputError
from pellucid.modalities.image.read import Picture, read_picture

# two rows of three: no turn or mirror of it is itself
RED, GREEN, BLUE, YELLOW, CYAN = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
UPRIGHT = np.array([[RED, GREEN, BLUE], [YELLOW, CYAN, BLACK]], np.uint8)
PICTURE = Image.fromarray(UPRIGHT)
# how EXIF says that the upright picture lies in the file: which side its row 0 and its column 0 are
STORED = {
    1: UPRIGHT,  # top, left
    2: UPRIGHT[:, ::-1],  # top, right
    3: UPRIGHT[::-1, ::-1],  # bottom, right
    4: UPRIGHT[::-1],  # bottom, left
    5: UPRIGHT.swapaxes(0, 1),  # left, top
    6: UPRIGHT.swapaxes(0, 1)[::-1],  # right, top
    7: UPRIGHT.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: UPRIGHT.swapaxes(0, 1)[:, ::-1],  # left, bottom
}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# its red is sRGB's green and the other way round
SWAPPED = SRGB.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")
# sRGB's curve as that of the only channel
GREY = SRGB[:16] + b"GRAY" + SRGB[20:].replace(b"rTRC", b"kTRC")


def ink_profile() -> bytes:
    """The profile of a press whose cyan prints a neutral L* = 50, its black L* = 0, its other inks nothing."""
    corners = [0 if k else 128 if c else 255 for c in (0, 1) for _ in range(4) for k in (0, 1)]
    table = struct.pack(">4s4x4B9i", b"mft1", 4, 3, 2, 0, *(np.eye(3, dtype=int).ravel() << 16)) + bytes(range(256)) * 4
    table += b"".join(bytes([lightness, 128, 128]) for lightness in corners) + bytes(range(256)) * 3
    head = SRGB[4:8] + b"\2\x10\0\0prtrCMYKLab " + SRGB[24:128] + struct.pack(">I4sII", 1, b"A2B0", 144, len(table))
    return struct.pack(">I", 144 + len(table)) + head + table


def saved(image: Image.Image, path: Path, **options: object) -> Picture:
    image.save(path, **options)
    return read_picture(path)


def message(source: object, **options: int) -> str:
    with pytest.raises(InputError) as caught:
        read_picture(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def png(width: int, height: int, bits: int, colour: int, data: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    chunks = (header, *extra, (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    sealed = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(sealed)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # lossy formats blur edges: blocks of 16 pixels, of which the middle is asked
    image = Image.fromarray(STORED[orientation].repeat(16, 0).repeat(16, 1))
    options = {"quality": 95} if suffix in ("webp", "jpg", "avif") else {}
    picture = saved(image, tmp_path / f"a.{suffix}", exif=exif, **options)
    assert np.abs(picture.pixels[8::16, 8::16].astype(int) - UPRIGHT).max() <= 8
    assert picture.notes == ()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "gif", "jp2"])
def test_a_plain_file_gives_its_pixels_without_a_note(suffix: str, tmp_path: Path) -> None:
    picture = saved(PICTURE, tmp_path / f"a.{suffix}")
    assert (picture.pixels == UPRIGHT).all()
    assert picture.notes == ()


def test_the_name_is_the_path_as_given(tmp_path: Path) -> None:
    assert saved(PICTURE, tmp_path / "a.png").name == str(tmp_path / "a.png")


def test_the_pixels_can_be_written_to(tmp_path: Path) -> None:
    # torch.from_numpy warns of arrays that cannot
    assert saved(PICTURE, tmp_path / "a.png").pixels.flags.writeable


def test_the_first_bytes_decide_not_the_name(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert (read_picture(tmp_path / "a.jpg").pixels == UPRIGHT).all()


@pytest.mark.parametrize(
    ("mode", "value", "rgb"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 100, (100, 100, 100)),
        ("LA", (100, 255), (100, 100, 100)),
        ("YCbCr", (100, 128, 128), (100, 100, 100)),  # no colour difference
        ("HSV", (0, 255, 255), RED),
        ("RGBX", (1, 2, 3, 4), (1, 2, 3)),
        ("La", (100, 255), (100, 100, 100)),
    ],
)
def test_other_modes_become_rgb_without_a_note(mode: str, value: object, rgb: tuple[int, int, int]) -> None:
    picture = read_picture(Image.new(mode, (1, 1), value))
    assert picture.pixels.tolist() == [[list(rgb)]]
    assert picture.notes == ()


@pytest.mark.parametrize("suffix", ["tif", "jpg"])  # the JPEG is Adobe's, which stores the ink inverted
def test_cmyk_is_ink_taken_from_white(suffix: str, tmp_path: Path) -> None:
    picture = saved(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), tmp_path / f"a.{suffix}")
    assert np.abs(picture.pixels.astype(int) - (0, 255, 255)).max() <= 2
    assert picture.notes == ("CMYK converted to RGB without a colour profile",)


def test_lab_without_colour_is_grey(tmp_path: Path) -> None:
    # L* is 0 to 255; a* and b* are signed bytes, 0 without colour
    picture = saved(Image.frombytes("LAB", (2, 1), bytes([255, 0, 0, 0, 0, 0])), tmp_path / "a.tif")
    assert np.abs(picture.pixels[0].astype(int) - [WHITE, BLACK]).max() <= 1
    assert picture.notes == ("LAB converted to RGB without a colour profile",)


@pytest.mark.parametrize(
    ("mode", "left", "right", "hidden"),
    [
        ("P", 0, 1, 1),
        ("P", 0, 1, bytes([255, 0])),  # an alpha for each colour of the palette
        ("1", 0, 1, 1),
        ("L", 0, 77, 77),
        ("RGB", BLACK, GREEN, GREEN),
    ],
)
def test_a_transparent_colour_lies_on_white(
    mode: str, left: object, right: object, hidden: object, tmp_path: Path
) -> None:
    image = Image.new(mode, (2, 1), left)
    if mode == "P":
        image.putpalette([*BLACK, *GREEN])
    image.putpixel((1, 0), right)
    picture = saved(image, tmp_path / "a.png", transparency=hidden)
    assert picture.pixels[0].tolist() == [list(BLACK), list(WHITE)]
    assert picture.notes == ("transparent parts on white",)


@pytest.mark.parametrize(
    ("mode", "value", "seen"),
    [
        # by hand: alpha * colour + (1 - alpha) * 255, with alpha = 102 / 255 = 0.4
        ("RGBA", (255, 0, 0, 102), (255, 153, 153)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("LA", (100, 102), (193, 193, 193)),
    ],
)
def test_alpha_mixes_with_white(mode: str, value: object, seen: tuple[int, int, int], tmp_path: Path) -> None:
    picture = saved(Image.new(mode, (1, 1), value), tmp_path / "a.png")
    assert picture.pixels.tolist() == [[list(seen)]]
    assert picture.notes == ("transparent parts on white",)


def test_an_opaque_alpha_is_no_note(tmp_path: Path) -> None:
    assert saved(PICTURE.convert("RGBA"), tmp_path / "a.png").notes == ()


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize(
    ("value", "grey"), [(65535, 255), (257, 1), (25700, 100), (25700 + 128, 100), (25700 + 129, 101)]
)
def test_16_bit_grey_is_divided_by_257_and_rounded(value: int, grey: int, suffix: str, tmp_path: Path) -> None:
    picture = saved(Image.fromarray(np.full((2, 3), value, np.uint16)), tmp_path / f"a.{suffix}")
    assert (picture.pixels == grey).all()
    assert picture.notes == ("16 bits reduced to 8 by dividing by 257",)


def test_16_bits_in_the_other_byte_order_are_the_same() -> None:
    assert (read_picture(Image.new("I;16B", (2, 3), 25700)).pixels == 100).all()


def test_a_transparent_16_bit_grey_lies_on_white(tmp_path: Path) -> None:
    rows = b"\0" + struct.pack(">HH", 257, 258)  # one level of 16 bits apart
    path = written(tmp_path / "a.png", png(2, 1, 16, 0, rows, (b"tRNS", struct.pack(">H", 258))))
    assert read_picture(path).pixels[0, :, 0].tolist() == [1, 255]


def test_16_bits_a_channel_are_reduced_with_a_note(tmp_path: Path) -> None:
    rows = b"\0" + struct.pack(">HHH", 65535, 25700, 0)
    picture = read_picture(written(tmp_path / "a.png", png(1, 1, 16, 2, rows)))
    assert picture.pixels.tolist() == [[[255, 100, 0]]]
    assert picture.notes == ("16 bits a channel reduced to 8",)


def test_a_tiff_of_fractions_is_scaled_by_255(tmp_path: Path) -> None:
    picture = saved(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), tmp_path / "a.tif")
    assert picture.pixels[0, :, 0].tolist() == [0, 128, 255]


def test_a_tiff_of_numbers_beyond_1_is_refused_with_their_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-2, 300]], np.float32)).save(tmp_path / "a.tif")
    assert "Got -2 to 300." in message(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("image", "tags"),
    [
        (Image.fromarray(np.array([[7]], np.int32)), {}),  # 32-bit whole numbers
        (Image.new("I;16", (1, 1)), {262: 0}),  # white is 0, which Pillow does not turn round
    ],
)
def test_grey_without_a_known_white_is_refused(image: Image.Image, tags: dict[int, int], tmp_path: Path) -> None:
    image.save(tmp_path / "a.tif", tiffinfo=tags)
    assert "grey values without a white" in message(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif", "avif"])
def test_the_first_of_several_frames_is_read_with_a_note(suffix: str, tmp_path: Path) -> None:
    grey, *others = (Image.new("RGB", (16, 16), (level,) * 3) for level in (100, 200, 50))
    picture = saved(grey, tmp_path / f"a.{suffix}", save_all=True, append_images=others)
    assert np.abs(picture.pixels.astype(int) - 100).max() <= 2
    assert picture.notes == ("frame 1 of 3",)


def test_the_second_view_of_a_phones_photo_is_no_note(tmp_path: Path) -> None:
    views = [Image.new("RGB", (16, 16), (level,) * 3) for level in (100, 200)]
    views[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=views[1:])
    with Image.open(tmp_path / "a.jpg") as opened:
        pictures = [read_picture(opened), read_picture(tmp_path / "a.jpg")]
    assert [(picture.notes, picture.pixels[0, 0, 0]) for picture in pictures] == [((), 100)] * 2


def test_a_thumbnail_beside_a_larger_picture_is_a_note(tmp_path: Path) -> None:
    assert saved(PICTURE, tmp_path / "a.tif", tiffinfo={254: 1}).notes == (
        "a reduced copy, beside a larger picture in the same file",
    )


def test_a_profile_changes_the_colours_with_a_note(tmp_path: Path) -> None:
    picture = saved(PICTURE, tmp_path / "a.png", icc_profile=SWAPPED)
    assert np.abs(picture.pixels.astype(int) - UPRIGHT[..., [1, 0, 2]]).max() <= 2
    assert picture.notes == ("colours converted to sRGB from the profile 'sRGB built-in'",)


def test_a_profile_applies_to_what_is_seen_through_transparency(tmp_path: Path) -> None:
    # red is green by the profile; at alpha 0.4 on white
    picture = saved(Image.new("RGBA", (1, 1), (*RED, 102)), tmp_path / "a.png", icc_profile=SWAPPED)
    assert np.abs(picture.pixels[0, 0].astype(int) - (153, 255, 153)).max() <= 2


def test_a_profile_applies_to_a_palette(tmp_path: Path) -> None:
    picture = saved(PICTURE.quantize(6), tmp_path / "a.png", icc_profile=SWAPPED)
    assert np.abs(picture.pixels.astype(int) - UPRIGHT[..., [1, 0, 2]]).max() <= 2


def test_a_profile_applies_to_16_bit_grey(tmp_path: Path) -> None:
    # parametric curve 0 with exponent 1 in place of sRGB's curve 3: the levels are luminance
    at = GREY.index(b"para")
    linear = GREY[: at + 8] + struct.pack(">HHi", 0, 0, 1 << 16) + GREY[at + 16 :]
    picture = saved(Image.new("I;16", (1, 1), 257 * 51), tmp_path / "a.png", icc_profile=linear)
    # luminance 51 / 255 = 0.2 is 1.055 * 0.2**(1 / 2.4) - 0.055 = 0.4845 in sRGB, times 255
    assert np.abs(picture.pixels.astype(int) - 123.5).max() <= 1.5


@pytest.mark.parametrize("suffix", ["tif", "jpg"])
def test_a_profile_of_a_press_says_what_its_inks_look_like(suffix: str, tmp_path: Path) -> None:
    picture = saved(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), tmp_path / f"a.{suffix}", icc_profile=ink_profile())
    # L* = 128 / 255 * 100 = 50.2 is luminance ((50.2 + 16) / 116)**3 = 0.186, in sRGB 1.055 * 0.186**(1 / 2.4) - 0.055
    assert np.abs(picture.pixels.astype(int) - 119.5).max() <= 2
    assert picture.notes == ("colours converted to sRGB from the profile 'without a name'",)


@pytest.mark.parametrize(
    ("image", "profile"), [(PICTURE, SRGB), (PICTURE.convert("L"), SRGB), (PICTURE.convert("L"), GREY)]
)
def test_a_profile_that_is_srgb_moves_no_pixel(image: Image.Image, profile: bytes, tmp_path: Path) -> None:
    picture = saved(image, tmp_path / "a.png", icc_profile=profile)
    assert (picture.pixels == np.asarray(image.convert("RGB"))).all()
    assert picture.notes == ()


@pytest.mark.parametrize(
    ("profile", "reason"),
    [(b"no profile", "cannot open profile from string"), (GREY, "it is for GRAY, the pixels are RGB")],
)
def test_a_profile_that_cannot_be_used_is_a_note(profile: bytes, reason: str, tmp_path: Path) -> None:
    picture = saved(PICTURE, tmp_path / "a.png", icc_profile=profile)
    assert (picture.pixels == UPRIGHT).all()
    assert picture.notes == (f"colour profile not used ({reason})",)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif", "ppm", "jp2", "avif"])
@pytest.mark.filterwarnings("default:Corrupt EXIF data")  # Pillow's own word on a TIFF
def test_a_truncated_file_is_refused(suffix: str, tmp_path: Path) -> None:
    whole = tmp_path / f"whole.{suffix}"
    Image.effect_noise((64, 64), 50).convert("RGB").save(whole)
    path = written(tmp_path / f"cut.{suffix}", whole.read_bytes()[: whole.stat().st_size // 2])
    text = message(path)
    assert text.startswith(f"{str(path)!r} cannot be decoded (")
    assert text.endswith("export it again as PNG.")


def test_a_flag_of_pillow_that_hides_truncation_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert "LOAD_TRUNCATED_IMAGES" in read_picture(PICTURE).notes[0]


def test_a_size_beyond_the_limit_is_refused_before_decoding(tmp_path: Path) -> None:
    # the header claims 50000 x 50000, the pixels are missing: decoding would complain of those
    path = written(tmp_path / "a.png", png(50000, 50000, 8, 2, b""))
    assert "is 50000 x 50000 pixels. Expected 1 to `max_pixels` = 100000000" in message(path)


def test_the_limit_is_the_last_size_that_is_read(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png", max_pixels=6).pixels.shape == (2, 3, 3)
    assert "3 x 2" in message(tmp_path / "a.png", max_pixels=5)


def test_the_limit_is_not_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PICTURE.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)  # refuses 6 pixels, warns of 2
    assert (read_picture(tmp_path / "a.png").pixels == UPRIGHT).all()


@pytest.mark.doors
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty (0 bytes)"),
        (b"see the cat\n", "is a text file"),
        (b"<!DOCTYPE html><svg>", "is a web page"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is an EPS or PostScript drawing"),
        (b"\xc5\xd0\xd3\xc6\x20\0\0\0", "is an EPS or PostScript drawing"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "is an SVG drawing"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is an HEIC photo"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "is a video"),
        (b"%PDF-1.7\n", "is a PDF document"),
        (b"II*\0\x10\0\0\0CR\2\0", "is a camera's raw file"),
        (b"\0" * 128 + b"DICM", "is a DICOM file"),
        (b"\x93NUMPY\1\0", "is a NumPy file"),
        (b"\1\2\3", "is of an unknown kind"),
    ],
)
def test_what_is_no_picture_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "cat.jpg", content)
    text = message(path)
    assert text.startswith(f"{str(path)!r} {said}")
    assert text.endswith("Check the path, or convert it to PNG or JPEG.")


@pytest.mark.doors
def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert message(tmp_path) == f"{str(tmp_path)!r} is a folder or a device. Pass the path of one picture."


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is a folder or a device" in message(tmp_path / "pipe")


@pytest.mark.doors
@pytest.mark.parametrize(("name", "said"), [("none.png", "No such file"), ("nul\0.png", "null byte")])
def test_a_path_that_leads_nowhere_is_refused(name: str, said: str, tmp_path: Path) -> None:
    path = str(tmp_path / name)
    text = message(path)
    assert text.startswith(f"{path!r} cannot be opened (")
    assert said in text


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    assert "cannot be opened (Permission denied). Check the path and the permission to read it." in message(
        tmp_path / "a.png"
    )


def test_a_refusal_names_its_cause(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_picture(tmp_path / "none.png")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_unreadable_exif_is_a_note() -> None:
    picture = PICTURE.copy()
    picture.info["exif"] = b"Exif\0\0garbage"
    picture = read_picture(picture)
    assert (picture.pixels == UPRIGHT).all()
    assert picture.notes[0].startswith("EXIF data unreadable (")


def test_a_picture_of_pillow_is_left_as_it_was() -> None:
    given = PICTURE.copy()
    given.getexif()[0x0112] = 6
    read_picture(given)
    assert given == PICTURE
    assert given.getexif()[0x0112] == 6


def test_a_picture_of_pillow_is_read_at_its_current_frame(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.tif", save_all=True, append_images=[Image.new("RGB", (1, 1), GREEN)])
    with Image.open(tmp_path / "a.tif") as opened:
        opened.seek(1)
        picture = read_picture(opened)
    assert (picture.pixels.tolist(), picture.notes) == ([[list(GREEN)]], ("frame 2 of 2",))


def test_a_picture_of_pillow_may_be_closed_once_decoded(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (3, 2))])
    with Image.open(tmp_path / "a.gif") as opened:
        opened.load()
    assert (read_picture(opened).pixels == UPRIGHT).all()


def test_a_picture_of_pillow_closed_before_decoding_is_refused(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        pass
    assert message(opened).endswith("Pass it whole, before its file is closed, or pass the path.")


def test_a_picture_without_pixels_is_refused() -> None:
    assert "is 0 x 5 pixels" in message(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (UPRIGHT, UPRIGHT),
        (UPRIGHT[..., 0], UPRIGHT[..., [0, 0, 0]]),
        (UPRIGHT[..., :1], UPRIGHT[..., [0, 0, 0]]),
        (UPRIGHT[::-1, ::-1], UPRIGHT[::-1, ::-1]),
        (np.dstack([UPRIGHT, np.full((2, 3), 255, np.uint8)]), UPRIGHT),
        (UPRIGHT.astype(np.float32) / 255, UPRIGHT),
        (UPRIGHT.astype(np.float64) / 255, UPRIGHT),
        (UPRIGHT.astype(np.float16) / np.float16(255), UPRIGHT),
        (UPRIGHT.astype(np.uint16) * 257, UPRIGHT),
        (UPRIGHT.astype(">u2") * 257, UPRIGHT),
    ],
)
def test_an_array_is_its_pixels(array: np.ndarray, expected: np.ndarray) -> None:
    picture = read_picture(array)
    assert picture.name == "array"
    assert (picture.pixels == expected).all()


def test_the_pixels_are_a_copy_of_the_array() -> None:
    assert not np.shares_memory(read_picture(UPRIGHT).pixels, UPRIGHT)


@pytest.mark.parametrize(
    ("array", "note"),
    [
        (np.zeros((2, 3, 4), np.uint8), "transparent parts on white"),
        (np.zeros((2, 3), np.float32), "fractions rounded to 8 bits"),
        (np.zeros((2, 3), np.uint16), "16 bits reduced to 8 by dividing by 257"),
    ],
)
def test_what_an_array_loses_is_a_note(array: np.ndarray, note: str) -> None:
    assert read_picture(array).notes == (note,)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 8, 9), np.uint8), "Got (3, 8, 9). Write array.transpose(1, 2, 0)."),
        (np.zeros((8, 9, 2), np.uint8), "Got (8, 9, 2). Pass one picture, channels last."),
        (np.zeros((1, 8, 9, 3), np.uint8), "Got (1, 8, 9, 3). Pass one picture, channels last."),
        (np.zeros((0, 9, 3), np.uint8), "Got (0, 9, 3). Pass one picture, channels last."),
        (np.zeros((8, 9, 3), np.int64), "Got int64. Write array.astype(numpy.uint8) if"),
        (np.zeros((8, 9, 3), bool), "Got bool."),
        (np.array([[-0.5, 1.0]]), "Got -0.5 to 1. Divide values of 8 bits by 255"),
        (np.array([[0.0, 1.001]]), "Got 0 to 1.001."),
        (np.array([[0.5, np.nan]]), "Got nan to nan."),
        (np.array([[0.5, np.inf]]), "Got 0.5 to inf."),
    ],
)
def test_an_array_that_is_no_picture_is_refused(array: np.ndarray, said: str) -> None:
    assert said in message(array)


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1)])
def test_one_row_or_column_is_a_picture(shape: tuple[int, int]) -> None:
    assert read_picture(np.zeros(shape, np.uint8)).pixels.shape == (*shape, 3)


@pytest.mark.doors
@pytest.mark.parametrize("source", [[[0]], b"a.png", None])
def test_another_type_is_refused_with_its_name(source: object) -> None:
    # past the type checker of the test run, which would answer first
    with pytest.raises(ArgumentError, match=f"Got {type(source).__name__}"):
        inspect.unwrap(read_picture)(source)


@pytest.mark.doors
def test_a_limit_of_no_pixels_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"`max_pixels` is a whole number, 1 or more\. Got 0"):
        read_picture(UPRIGHT, max_pixels=0)
