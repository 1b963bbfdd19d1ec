"""Photographs of every kind, and what must become of their cameras and maps."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge4d.runtime.errors import Edge4DError, InvalidPicture, InvalidRequest
from edge4d.runtime.photo import FAR, MAX_PIXELS, centre_crop, read_photo, read_rgb8

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos"
SIZE = (64, 32)


def gradient(width: int, height: int) -> np.ndarray:
    """Red rises to the right, green downwards: every place and orientation can be told from its colour."""
    columns, rows = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([columns, rows, np.full_like(rows, 128)], axis=-1).astype(np.uint8)


def save(tmp_path: Path, image: Image.Image, name: str = "photo.png", **options: object) -> Path:
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_a_picture_of_the_right_size_is_not_resampled(tmp_path):
    pixels = gradient(*SIZE)
    photo = read_photo(save(tmp_path, Image.fromarray(pixels)), SIZE)
    np.testing.assert_array_equal(photo.image, pixels.astype(np.float32) / np.float32(255))
    assert photo.image.dtype == np.float32


def test_an_array_is_a_photograph_too(tmp_path):
    pixels = gradient(100, 80)
    from_file = read_photo(save(tmp_path, Image.fromarray(pixels)), SIZE)
    np.testing.assert_array_equal(read_photo(pixels, SIZE).image, from_file.image)


def test_the_middle_is_kept_and_the_intrinsics_follow():
    # 100x100 to 64x32: the middle 100x50 remains (rows 25 to 75), then both sides shrink by 0.64.
    photo = read_photo(gradient(100, 100), SIZE, intrinsics=(90.0, 80.0, 40.0, 55.0))
    assert photo.camera.intrinsics == pytest.approx((57.6, 51.2, 25.6, 0.64 * (55 - 25)))
    assert (photo.camera.width, photo.camera.height) == SIZE
    # One step of the gradient is 255/99 per pixel; the ends of the crop lie at row 25.3 and 74.7.
    assert photo.image[0, 0, 1] * 255 == pytest.approx(25.3 / 99 * 255, abs=2)
    assert photo.image[-1, 0, 1] * 255 == pytest.approx(73.7 / 99 * 255, abs=2)


def test_shrinking_averages_instead_of_aliasing():
    stripes = np.zeros((320, 640, 3), np.uint8)
    stripes[:, ::2] = 255
    # Black and white columns are grey from afar; without antialiasing some would stay. At the sides the filter is cut.
    np.testing.assert_allclose(read_photo(stripes, SIZE).image[:, 1:-1], 0.5, atol=0.01)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["photo.jpg", "photo.png"])
def test_exif_orientation(tmp_path, orientation, name):
    turn = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    stored = Image.fromarray(gradient(160, 80))
    for step in turn:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = read_photo(save(tmp_path, stored, name, exif=exif), SIZE)
    upright = read_photo(gradient(160, 80), SIZE)
    # JPEG changes a smooth gradient by a few of 255 levels.
    np.testing.assert_allclose(photo.image, upright.image, atol=6 / 255)
    assert photo.camera.intrinsics == upright.camera.intrinsics


def test_grey_grey_alpha_palette_and_bilevel(tmp_path):
    grey = gradient(*SIZE)[:, :, 0]
    expected = np.repeat(grey[:, :, None], 3, axis=2).astype(np.float32) / 255
    np.testing.assert_allclose(read_photo(save(tmp_path, Image.fromarray(grey)), SIZE).image, expected, atol=1e-6)
    opaque = Image.fromarray(grey).convert("LA")
    np.testing.assert_allclose(read_photo(save(tmp_path, opaque), SIZE).image, expected, atol=1e-6)
    palette = Image.fromarray(gradient(*SIZE)).quantize(8)
    np.testing.assert_allclose(
        read_photo(save(tmp_path, palette), SIZE).image, np.asarray(palette.convert("RGB"), np.float32) / 255, atol=1e-6
    )
    bilevel = Image.fromarray(np.where(grey > 127, 255, 0).astype(np.uint8)).convert("1")
    assert set(np.unique(read_photo(save(tmp_path, bilevel), SIZE).image)) == {0.0, 1.0}


def test_transparent_pictures_lie_on_the_background(tmp_path):
    pixels = np.zeros((32, 64, 4), np.uint8)
    pixels[:, :32] = (255, 0, 0, 255)
    pixels[:, 32:] = (0, 255, 0, 0)
    path = save(tmp_path, Image.fromarray(pixels))
    image = read_photo(path, SIZE, background=(0.0, 0.0, 1.0)).image
    np.testing.assert_allclose(image[:, :32], np.broadcast_to([1.0, 0, 0], (32, 32, 3)))
    np.testing.assert_allclose(image[:, 32:], np.broadcast_to([0, 0, 1.0], (32, 32, 3)))
    np.testing.assert_allclose(read_photo(path, SIZE).image[:, 32:], 0.0)


def test_sixteen_bits(tmp_path):
    values = np.linspace(0, 65535, 64 * 32).astype(np.uint16).reshape(32, 64)
    image = read_photo(save(tmp_path, Image.fromarray(values)), SIZE).image
    np.testing.assert_allclose(image[:, :, 0], values / 65535.0, atol=1e-6)
    np.testing.assert_array_equal(image[:, :, 0], image[:, :, 2])


def test_cmyk_and_floating_point(tmp_path):
    cmyk = Image.fromarray(gradient(*SIZE)).convert("CMYK")
    image = read_photo(save(tmp_path, cmyk, "photo.tif"), SIZE).image
    np.testing.assert_allclose(image, gradient(*SIZE).astype(np.float32) / 255, atol=1.01 / 255)
    with pytest.raises(InvalidPicture, match="neither 8 nor 16 bits"):
        read_photo(save(tmp_path, Image.fromarray(np.ones((32, 64), np.float32)), "float.tif"), SIZE)


def test_a_single_pixel_fills_the_view(tmp_path):
    path = save(tmp_path, Image.fromarray(np.full((1, 1, 3), (10, 20, 30), np.uint8)))
    photo = read_photo(path, SIZE)
    np.testing.assert_allclose(photo.image, np.broadcast_to(np.array([10, 20, 30]) / 255, (32, 64, 3)), atol=1e-6)


@pytest.mark.parametrize("name", ["large.jpg", "large.png"])
def test_a_photograph_of_108_megapixels(tmp_path, name):
    # Colours in four quarters; grey would hide a wrong crop.
    small = np.zeros((2, 2, 3), np.uint8)
    small[0, 1], small[1, 0], small[1, 1] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    large = Image.fromarray(small).resize((12_000, 9_000), Image.Resampling.NEAREST)
    options = {"compress_level": 1} if name.endswith("png") else {}
    photo = read_photo(save(tmp_path, large, name, **options), SIZE, fov=90.0)
    # JPEG's chroma changes plain colours by a few levels.
    np.testing.assert_allclose(photo.image[2, -3], (1, 0, 0), atol=0.05)
    np.testing.assert_allclose(photo.image[-3, 2], (0, 1, 0), atol=0.05)
    assert photo.camera.intrinsics == pytest.approx((32.0, 32.0, 32.0, 16.0))


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "size", [(20_000, 20_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1), (MAX_PIXELS + 1, 1), (0, 0)]
)
def test_decompression_bombs_are_refused(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    with pytest.raises(InvalidPicture):
        read_photo(path, SIZE)


def test_missing_truncated_and_foreign_files(tmp_path):
    with pytest.raises(InvalidPicture, match="no picture"):
        read_photo(tmp_path / "absent.png", SIZE)
    with pytest.raises(InvalidPicture, match="no picture"):
        read_photo(tmp_path / "absent.mp4", SIZE)
    (tmp_path / "film.MP4").touch()
    for path, kind in ((tmp_path, "folder"), (tmp_path / "film.MP4", "video")):
        with pytest.raises(InvalidPicture, match=f"is a {kind}, not a photograph") as caught:
            read_photo(path, SIZE)
        assert "gvf_diffusion" in caught.value.hint
    whole = save(tmp_path, Image.fromarray(gradient(300, 200)), "photo.jpg").read_bytes()
    for name, content in {
        "cut.jpg": whole[: len(whole) // 2],
        "empty.jpg": b"",
        "text.jpg": b"hello",
        "ps.eps": b"%!PS",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidPicture, match="Cannot read"):
            read_photo(tmp_path / name, SIZE)


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4), np.float32), np.zeros((0, 4, 3), np.uint8), np.zeros(3, np.uint8)],
)
def test_arrays_that_are_no_photographs(array):
    with pytest.raises(InvalidPicture, match="uint8"):
        read_photo(array, SIZE)


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0xA405] = 28
    options = {} if kind == "GIF" else {"exif": exif}
    Image.fromarray(gradient(20, 12)).save(stream, kind, **options)
    return stream.getvalue()


SEEDS = {kind: encoded(kind) for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP") if kind != "BMP"}


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(sorted(SEEDS)),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    end=st.floats(0, 1),
)
def test_mutated_files_give_a_picture_or_a_named_error(tmp_path_factory, kind, edits, end):
    content = bytearray(SEEDS[kind])
    for place, value in edits:
        content[int(place * len(content))] = value
    path = tmp_path_factory.mktemp("mutated") / "photo"
    path.write_bytes(content[: int(end * len(content)) + 1])
    try:
        photo = read_photo(path, (32, 32))
    except Edge4DError:
        return
    assert photo.image.shape == (32, 32, 3)
    assert np.isfinite(photo.image).all()


# --- cameras ---------------------------------------------------------------------------------------------------------


def with_exif(tmp_path: Path, **tags: object) -> Path:
    exif = Image.Exif()
    directory = exif.get_ifd(0x8769)
    names = {"film": 0xA405, "focal": 0x920A, "resolution": 0xA20E, "unit": 0xA210, "width": 0xA002}
    for name, value in tags.items():
        directory[names[name]] = value
    return save(tmp_path, Image.fromarray(gradient(400, 300)), "photo.jpg", exif=exif)


def test_the_focal_length_in_exif(tmp_path):
    # 35 mm film has a diagonal of 43.267 mm, this picture one of 500 pixels.
    photo = read_photo(with_exif(tmp_path, film=26), (400, 300 // 32 * 32))
    assert photo.camera.intrinsics[0] == pytest.approx(26 * 500 / 43.2666, rel=1e-4)
    assert photo.camera_source.startswith("EXIF")


def test_the_sensor_resolution_in_exif(tmp_path):
    # 8 mm at 4000 pixels per inch is 1259.8 pixels on a sensor 4000 pixels wide; this picture is a tenth of that.
    photo = read_photo(with_exif(tmp_path, focal=8.0, resolution=4000.0, unit=2, width=4000), (400, 288))
    assert photo.camera.intrinsics[0] == pytest.approx(8 / 25.4 * 4000 / 10)


@pytest.mark.parametrize(
    "tags", [{"film": 0}, {"film": 60_000}, {"focal": 5.0}, {"focal": 5.0, "resolution": 1e9, "unit": 9}]
)
def test_unbelievable_exif_is_ignored(tmp_path, tags):
    photo = read_photo(with_exif(tmp_path, **tags), (400, 288))
    assert photo.camera_source == "assumed, 60° across"
    assert photo.camera.intrinsics[0] == pytest.approx(200 / np.tan(np.radians(30)))


def test_the_camera_that_is_given_wins(tmp_path):
    path = with_exif(tmp_path, film=26)
    assert read_photo(path, (400, 288), fov=90).camera.intrinsics[0] == pytest.approx(200)
    assert read_photo(path, (400, 288), intrinsics=(300, 310, 200, 150)).camera.intrinsics == pytest.approx(
        (300, 310, 200, 144)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"fov": 0.0},
        {"fov": 180.0},
        {"fov": float("nan")},
        {"fov": 60, "intrinsics": (1, 1, 1, 1)},
        {"intrinsics": (0, 1, 1, 1)},
        {"intrinsics": (1, 1, 1)},
        {"intrinsics": (1, 1, float("inf"), 1)},
    ],
)
def test_cameras_that_cannot_be(options):
    with pytest.raises(InvalidRequest):
        read_photo(gradient(*SIZE), SIZE, **options)


# --- maps ------------------------------------------------------------------------------------------------------------


def test_maps_follow_the_same_crop(tmp_path):
    # Depth and ids count columns and rows; the photograph's red and green do so too.
    pixels = gradient(200, 200)
    columns = np.broadcast_to(np.arange(200, dtype=np.float32) + 1, (200, 200))
    np.save(tmp_path / "depth.npy", columns)
    ids = np.repeat(np.arange(200, dtype=np.uint16)[:, None], 200, axis=1)
    Image.fromarray(ids).save(tmp_path / "ids.png")
    photo = read_photo(pixels, SIZE, depth=tmp_path / "depth.npy", instances=tmp_path / "ids.png")
    # The photograph is interpolated and the maps are not: half a source pixel, and half a step of rounding.
    np.testing.assert_allclose(photo.depth - 1, photo.image[:, :, 0] * 199, atol=2.6)
    np.testing.assert_allclose(photo.instances, photo.image[:, :, 1] * 199, atol=2.6)
    assert (photo.depth.dtype, photo.instances.dtype) == (np.float32, np.int32)


def test_maps_of_another_resolution():
    depth = np.repeat(np.array([[1.0, 2.0]]), 1, axis=0)
    photo = read_photo(gradient(200, 100), SIZE, depth=depth)
    assert (photo.depth[:, :32] == 1).all()
    assert (photo.depth[:, 32:] == 2).all()


def test_depth_pictures_need_a_scale(tmp_path):
    Image.fromarray(np.full((32, 64), 2500, np.uint16)).save(tmp_path / "depth.png")
    with pytest.raises(InvalidRequest, match="scale"):
        read_photo(gradient(*SIZE), SIZE, depth=tmp_path / "depth.png")
    photo = read_photo(gradient(*SIZE), SIZE, depth=tmp_path / "depth.png", depth_scale=0.001)
    np.testing.assert_allclose(photo.depth, 2.5, rtol=1e-6)
    with pytest.raises(InvalidRequest, match="positive"):
        read_photo(gradient(*SIZE), SIZE, depth=tmp_path / "depth.png", depth_scale=0.0)


def test_infinite_depth_is_far_and_holes_are_refused():
    depth = np.full((32, 64), np.inf, np.float32)
    assert (read_photo(gradient(*SIZE), SIZE, depth=depth).depth == FAR).all()
    for bad in (0.0, -1.0, np.nan, -np.inf):
        depth[3, 5] = bad
        with pytest.raises(InvalidPicture, match="1 of 2048"):
            read_photo(gradient(*SIZE), SIZE, depth=depth)


def test_palette_indices_are_ids(tmp_path):
    ids = Image.fromarray(np.arange(32 * 64, dtype=np.uint8).reshape(32, 64) % 5, "L").convert("P")
    ids = Image.fromarray(np.asarray(ids) % 5)
    ids.putpalette([200, 10, 10] * 256)
    ids.save(tmp_path / "ids.png")
    assert ids.mode == "P"
    photo = read_photo(gradient(*SIZE), SIZE, instances=tmp_path / "ids.png")
    assert set(np.unique(photo.instances)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("depth", np.ones((32, 32)), "different shapes"),
        ("depth", np.ones((32, 64, 3)), "not a map"),
        ("instances", np.ones((32, 64)), "no ids"),
        ("instances", np.full((32, 64), -1), "out of range"),
        ("instances", np.full((32, 64), 2**40), "out of range"),
        ("instances", np.zeros((0, 0), int), "not a map"),
    ],
)
def test_maps_that_cannot_be_used(name, value, match):
    with pytest.raises(InvalidPicture, match=match):
        read_photo(gradient(*SIZE), SIZE, **{name: value})


def test_a_colour_picture_is_no_map(tmp_path):
    path = save(tmp_path, Image.fromarray(gradient(*SIZE)))
    with pytest.raises(InvalidPicture, match="one channel"):
        read_photo(gradient(*SIZE), SIZE, instances=path)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 2000), st.integers(1, 2000))
def test_crops_are_centred_largest_and_of_the_right_aspect(width, height, target_width, target_height):
    crop = centre_crop((width, height), (target_width, target_height))
    left, top, right, bottom = crop.pixels(width, height)
    # Float64 rounding of positions up to 5000.
    assert left + right == pytest.approx(width, abs=1e-9)
    assert top + bottom == pytest.approx(height, abs=1e-9)
    assert (right - left) * target_height == pytest.approx((bottom - top) * target_width, rel=1e-9)
    assert min(left, top) == pytest.approx(0, abs=1e-9)
    assert min(left, top) >= -1e-9


def test_read_rgb8(tmp_path):
    pixels = gradient(30, 20)
    np.testing.assert_array_equal(read_rgb8(save(tmp_path, Image.fromarray(pixels))), pixels)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the folder of real photographs is not here")
@pytest.mark.parametrize("name", ["cars.jpg", "truck.jpg"])
def test_real_photographs(name):
    photo = read_photo(PHOTOS / name, (448, 256))
    assert photo.image.shape == (256, 448, 3)
    assert photo.image.std() > 0.1
