"""The style of the third toy adapter: blue tones, of the picture's lightness alone."""

import numpy as np

from serve_app.tiny.cyanotype import cyanotype


def test_black_grey_and_white_become_the_three_tones() -> None:
    greys = np.array([0, 128, 255], np.uint8)[None, :, None].repeat(3, axis=2)
    assert cyanotype(greys).tolist() == [[[8, 20, 60], [60, 110, 190], [235, 245, 255]]]


def test_lighter_stays_lighter_and_the_hue_goes() -> None:
    greys = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    tones = cyanotype(greys).astype(int)
    assert (np.diff(tones, axis=0) >= 0).all()
    assert (tones[:, 2] >= tones[:, 1]).all()
    assert (tones[:, 1] >= tones[:, 0]).all()
    red, grey = np.array([255, 0, 0], np.uint8), np.array([76, 76, 76], np.uint8)
    assert np.array_equal(cyanotype(red), cyanotype(grey))


def test_pictures_of_any_number_keep_their_shape() -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (2, 3, 8, 8, 3), np.uint8)
    assert cyanotype(pictures).shape == pictures.shape
    assert np.array_equal(cyanotype(pictures)[1, 2], cyanotype(pictures[1, 2]))
