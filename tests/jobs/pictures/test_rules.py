"""Init images and masks: opened by one set of rules, upright, and of the values that they mean."""

from __future__ import annotations

import io
import struct
import subprocess
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from jobs.limits import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from jobs.pictures.rules import PictureError, read_picture
from tests.jobs.pictures.files_by_hand import (
    ORIENTATION,
    Entry,
    chunk,
    long,
    png,
    short,
    tiff,
    with_exif,
)

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def file(image: Image.Image = PICTURE, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def refused(data: bytes) -> str:
    with pytest.raises(PictureError) as caught:
        read_picture(data)
    return str(caught.value)


class TestRules:
    def test_another_format_is_refused_whatever_the_file_is_called(self, monkeypatch):
        """Pillow renders EPS with Ghostscript where that is installed."""

        def run(*_: object, **__: object) -> None:
            raise AssertionError("a process was started")

        monkeypatch.setattr(subprocess, "Popen", run)
        eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n{} loop\n"
        for data in (eps, file(format="BMP"), file(format="TIFF"), file(format="GIF"), b"", b"x"):
            assert refused(data) == "is not a PNG, JPEG or WebP image"

    def test_too_many_pixels_are_refused_before_they_are_decoded(self, monkeypatch):
        def load(_: Image.Image) -> None:
            raise AssertionError("decoded")

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
        side = 13_000
        large = png((side, side), 1, 0, bytes(side * (1 + side // 8)))
        assert len(large) < 25_000
        assert refused(large) == (
            f"has {side}×{side} pixels, more than {MAX_IMAGE_PIXELS:,}; scale it down"
        )

    def test_too_many_bytes(self):
        assert refused(file() + bytes(MAX_IMAGE_BYTES)) == "is larger than 64 MiB"

    @pytest.mark.parametrize("format", ["PNG", "WEBP"])
    def test_an_animation(self, format):
        frames = [PICTURE, ImageOps.mirror(PICTURE)]
        data = file(frames[0], format, save_all=True, append_images=frames[1:])
        assert refused(data) == "is an animation; expected a still picture"

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
    def test_half_a_file(self, format):
        data = file(format=format)
        assert refused(data[: len(data) // 2]).startswith(("is damaged", "is not a PNG"))

    def test_a_picture_of_a_phone(self):
        """Which has a second one in the same file."""
        data = file(format="MPO", save_all=True, append_images=[ImageOps.mirror(PICTURE)])
        picture = read_picture(data)
        assert (picture.extension, picture.size) == ("jpg", (64, 48))

    def test_a_text_that_expands(self):
        text = b"Comment\0\0" + zlib.compress(bytes(80 * 2**20), 9)
        data = png((1, 1), 8, 0, b"\0\0", (b"zTXt", text))
        assert "is damaged" in refused(data)


class TestParts:
    """Files small or middling whose reading would take minutes or gigabytes."""

    def test_chunks_without_end(self):
        whole = file()
        data = whole[:33] + chunk(b"teSt") * 100_000 + whole[33:]
        assert refused(data) == "is damaged: it has more than 50,000 chunks"

    def test_segments_without_end(self):
        whole = file(format="JPEG")
        data = whole[:2] + b"\xff\xfe\0\2" * 100_000 + whole[2:]
        assert refused(data) == "is damaged: it has more than 50,000 segments"

    @pytest.mark.parametrize("filler", [b"\xff", b"\xff\0"])
    def test_filler_without_end(self, filler):
        whole = file(format="JPEG")
        data = whole[:2] + filler * 100_000 + whole[2:]
        assert refused(data) == "is damaged: more than 65,536 bytes lie between its parts"

    def test_a_jpeg_that_is_gone_over_too_often(self, monkeypatch):
        """A few bytes are a pass over all pixels, 10 ms at 64 million of them."""
        monkeypatch.setattr("jobs.pictures.rules.MAX_SCANNED_PIXELS", 100 * 800 * 800)
        whole = file(Image.new("L", (800, 800)), "JPEG", progressive=True)
        last = whole.rindex(b"\xff\xda")
        data = whole[:last] + whole[last:-2] * 200 + whole[-2:]
        assert refused(data) == "goes over its pixels too often; save it as a plain JPEG"

    @pytest.mark.parametrize("progressive", [False, True])
    def test_a_usual_jpeg_is_read(self, progressive):
        data = file(format="JPEG", progressive=progressive, comment=b"x" * 60_000)
        assert read_picture(data).size == (64, 48)

    @pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG"])
    def test_exif_data_whose_entries_all_point_to_all_of_it(self, format):
        """20,000 times 300 kB."""
        entries: list[Entry] = [(n, 7, 200_000, long(8)) for n in range(20_000)]
        exif = tiff(*entries, tail=bytes(60_000))
        if format == "JPEG":
            data = with_exif(file(format="JPEG"), exif)
        else:
            data = file(format=format, exif=b"Exif\0\0" + exif)
        assert refused(data) == "has EXIF data out of all proportion; remove it"

    def test_the_same_in_an_index_of_pictures(self):
        entries: list[Entry] = [(n, 7, 60_000, long(8)) for n in range(4_000)]
        index = b"MPF\0" + tiff(*entries, tail=bytes(10_000))
        whole = file(format="JPEG")
        data = whole[:2] + b"\xff\xe2" + struct.pack(">H", len(index) + 2) + index + whole[2:]
        assert refused(data) == "has EXIF data out of all proportion; remove it"


def before(image: Image.Image, mode: str, width: int, height: int) -> np.ndarray:
    """As Pillow's own functions have it, whole pictures at a time."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white" if mode == "RGB" else "black")
        image = Image.alpha_composite(ground, image)
    method = Image.Resampling.LANCZOS if mode == "RGB" else Image.Resampling.NEAREST
    return np.asarray(ImageOps.fit(image.convert(mode), (width, height), method=method))


def clear(mode: str) -> Image.Image:
    """The picture with an alpha channel that varies."""
    image = PICTURE.convert(mode)
    alpha = PICTURE.convert("L").rotate(180)
    image.putalpha(alpha)
    return image


MODES = {
    "RGB": file(),
    "RGBA": file(clear("RGBA")),
    "L": file(PICTURE.convert("L")),
    "LA": file(clear("LA")),
    "1": file(PICTURE.convert("1")),
    "P": file(PICTURE.quantize(20)),
    "P, transparent": file(PICTURE.quantize(20), transparency=3),
    "P, partly transparent": file(PICTURE.quantize(20), transparency=bytes(range(0, 200, 10))),
    "RGB, a colour transparent": file(transparency=PICTURE.getpixel((5, 5))),
    "L, a grey transparent": file(PICTURE.convert("L"), transparency=90),
    "JPEG": file(format="JPEG"),
    "JPEG, grey": file(PICTURE.convert("L"), "JPEG"),
    "JPEG, CMYK": file(PICTURE.convert("CMYK"), "JPEG"),
    "WebP": file(format="WEBP"),
    "WebP, RGBA": file(clear("RGBA"), "WEBP", lossless=True),
}


@pytest.mark.parametrize("part_pixels", [100, 2**20])
@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pictures_of_8_bits_are_what_pillow_makes_of_them(name, mode, part_pixels, monkeypatch):
    monkeypatch.setattr("jobs.pictures.pixels.PART_PIXELS", part_pixels)
    data = MODES[name]
    with Image.open(io.BytesIO(data)) as image, warnings.catch_warnings():
        expected = before(image, mode, 40, 56)
    assert np.array_equal(read_picture(data).fit(mode, 40, 56), expected)


class TestDepth:
    VALUES = np.arange(65536, dtype=np.uint32).reshape(256, 256)

    def grey16(self, *more: tuple[bytes, bytes]) -> bytes:
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in self.VALUES)
        return png((256, 256), 16, 0, rows, *more)

    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_16_bits_of_grey(self, mode):
        """Pillow clips them at 255."""
        found = read_picture(self.grey16()).fit(mode, 256, 256)
        expected = np.rint(self.VALUES / 257).astype(np.uint8)
        if mode == "RGB":
            expected = np.dstack([expected] * 3)
        assert np.array_equal(found, expected)

    def test_a_mask_of_16_bits_covers_as_much_as_of_8(self):
        mask = np.zeros((64, 64), np.uint8)
        mask[:6] = 255
        wide = Image.fromarray(mask.astype(np.uint16) * 200)
        assert wide.mode == "I;16"
        for image in (Image.fromarray(mask), wide):
            painted = read_picture(file(image)).fit("L", 64, 64) >= 128
            assert painted.mean() == 6 / 64

    def test_one_of_them_transparent(self):
        picture = read_picture(self.grey16((b"tRNS", struct.pack(">H", 0x1234))))
        for mode, ground in (("RGB", 255), ("L", 0)):
            found = picture.fit(mode, 256, 256)
            assert np.all(found[0x12, 0x34] == ground)
            assert np.all(found[0x12, 0x35] == 0x12)

    @pytest.mark.parametrize(
        ("depth", "row", "key"),
        [(1, b"\x50", 1), (2, b"\x1b", 1), (4, b"\x5f\x00", 5)],
    )
    def test_fewer_bits_of_grey_one_transparent(self, depth, row, key):
        """Pillow compares the file's value with pixels that it has scaled."""
        data = png((4, 1), depth, 0, b"\0" + row, (b"tRNS", struct.pack(">H", key)))
        found = read_picture(data).image.convert("RGBA").getchannel("A")
        bits = "".join(f"{byte:08b}" for byte in row)
        values = [int(bits[n * depth : (n + 1) * depth], 2) for n in range(4)]
        assert list(found.tobytes()) == [0 if value == key else 255 for value in values]

    def test_16_bits_of_rgb_one_transparent(self):
        row = struct.pack(">6H", 1000, 40000, 255, 256, 65535, 383)
        data = png((2, 1), 16, 2, b"\0" + row, (b"tRNS", row[:6]))
        image = read_picture(data).image.convert("RGBA")
        assert list(image.tobytes()) == [3, 156, 0, 0, 1, 255, 1, 255]

    @pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
    def test_16_bits_of_more_channels(self, colour, channels):
        row = struct.pack(f">{channels}H", *[40000] * channels)
        image = read_picture(png((1, 1), 16, colour, b"\0" + row)).image
        assert set(image.tobytes()) == {156}

    def test_a_mode_whose_range_nobody_knows(self, monkeypatch):
        monkeypatch.setattr("jobs.pictures.pixels._EIGHT_BIT", ("L",))
        assert refused(file()) == "is damaged: its mode RGB is unknown"


ODD_EXIF = {
    # Entries that Pillow cannot write again, which turning by its own function does.
    "a time that is a fraction": tiff(
        (ORIENTATION, 3, 1, short(6)), (0x0132, 5, 1, long(38)), tail=struct.pack("<LL", 2020, 1)
    ),
    "a height below the sea that is a fraction of too much": tiff(
        (ORIENTATION, 3, 1, short(6)),
        (0x8825, 4, 1, long(38)),
        tail=struct.pack("<HHHLLLLL", 1, 6, 10, 1, 56, 0, 2**32 - 1, 0),
    ),
    "a unit that is text": tiff((ORIENTATION, 3, 1, short(6)), (0x0128, 2, 2, b"2\0\0\0")),
    "an orientation of another type": tiff((ORIENTATION, 4, 1, long(6))),
    "an entry beyond the end": tiff((ORIENTATION, 3, 1, short(6)), (0x010F, 2, 99, long(9999))),
}

NO_ORIENTATION = {
    "of text": tiff((ORIENTATION, 2, 2, b"6\0\0\0")),
    "that there is not": tiff((ORIENTATION, 3, 1, short(9))),
    "of nothing by nothing": tiff((ORIENTATION, 5, 1, long(26)), tail=bytes(8)),
    "of no directory": b"II*\0" + long(9999),
    "of no TIFF": b"what is this?",
    "of nothing": b"",
}


class TestOrientation:
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_all_of_them(self, format, orientation):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        data = file(format=format, exif=exif)
        with Image.open(io.BytesIO(data)) as image:
            expected = ImageOps.exif_transpose(image)
            picture = read_picture(data)
        assert picture.size == expected.size
        width, height = expected.size
        found = picture.fit("RGB", width, height)
        assert np.array_equal(found, np.asarray(expected.convert("RGB")))

    @pytest.mark.parametrize("odd", ODD_EXIF)
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
    def test_odd_values_elsewhere(self, odd, format):
        plain = file(format=format)
        exif = ODD_EXIF[odd]
        if format == "JPEG":
            data = with_exif(plain, exif)
        else:
            data = file(format=format, exif=b"Exif\0\0" + exif)
        turned = read_picture(plain).image.transpose(Image.Transpose.ROTATE_270)
        picture = read_picture(data)
        assert picture.size == (48, 64)
        assert picture.image.tobytes() == turned.tobytes()
        picture.fit("RGB", 64, 64)

    @pytest.mark.parametrize("odd", NO_ORIENTATION)
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
    def test_an_orientation_that_is_none(self, odd, format):
        exif = NO_ORIENTATION[odd]
        if format == "JPEG":
            data = with_exif(file(format=format), exif)
        else:
            data = file(format=format, exif=b"Exif\0\0" + exif)
        assert read_picture(data).size == (64, 48)

    def test_16_bits_of_grey_are_turned_too(self):
        grey = Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20)
        exif = Image.Exif()
        exif[ORIENTATION] = 8
        found = read_picture(file(grey, exif=exif)).fit("L", 48, 64)
        straight = read_picture(file(grey)).fit("L", 64, 48)
        assert np.array_equal(found, np.rot90(straight))

    def test_in_the_text_of_a_png(self):
        """ImageMagick's way."""
        exif = b"Exif\0\0" + tiff((ORIENTATION, 3, 1, short(6)))
        text = b"Raw profile type exif\0\nexif\n%8d\n%s\n" % (len(exif), exif.hex().encode())
        whole = file()
        data = whole[:33] + chunk(b"tEXt", text) + whole[33:]
        assert read_picture(data).size == (48, 64)

    def test_in_xmp(self):
        xmp = '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
        whole = file()
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp.encode()
        data = whole[:33] + chunk(b"iTXt", text) + whole[33:]
        assert read_picture(data).size == (48, 64)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_thinnest_pictures_fit_the_widest_tasks(size, mode):
    picture = read_picture(file(Image.new("RGB", size, "red")))
    for width, height in ((64, 4096), (4096, 64)):
        assert picture.fit(mode, width, height).shape[:2] == (height, width)
