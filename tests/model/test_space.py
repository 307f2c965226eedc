"""Two encoders share a space only if weights and preprocessing are the same."""

from model.space import Preprocessing, space_id


def test_weights_and_every_field_of_the_preprocessing_are_part_of_the_identity() -> None:
    ids = {
        space_id("w1", Preprocessing(size=96)),
        space_id("w2", Preprocessing(size=96)),
        space_id("w1", Preprocessing(size=64)),
        space_id("w1", Preprocessing(size=96, mean=0.0)),
        space_id("w1", Preprocessing(size=96, scale=1.0)),
    }
    assert len(ids) == 5


def test_the_same_encoder_has_the_same_name_everywhere() -> None:
    assert space_id("w1", Preprocessing(size=96)) == space_id("w1", Preprocessing(size=96))
    assert space_id("w1", Preprocessing(size=96)).startswith("s")
    assert len(space_id("w1", Preprocessing(size=96))) == 13
