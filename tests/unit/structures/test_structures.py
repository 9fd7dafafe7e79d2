import dataclasses

import numpy as np
import pytest

from detcurate.errors import PredictionError, SelectionError
from detcurate.structures import Clusters, Detections, ImageScores, ObjectScores, Selection


def detection_columns():
    """Three rows of two members over four classes."""
    return {
        "image_ids": np.array([7, 7, 9]),
        "member": np.array([0, 1, 1], np.int32),
        "boxes": np.array([[0, 0, 4, 4], [1, 1, 5, 6], [2, 2, 8, 9]], np.float32),
        "scores": np.array([0.9, 0.8, 0.7], np.float32),
        "class_index": np.array([0, 3, 2], np.int32),
        "class_probs": np.full((3, 5), 0.2, np.float32),
    }


def object_columns():
    return {
        "image_ids": np.array([7, 9]),
        "boxes": np.zeros((2, 4), np.float32),
        "num_fired": np.array([1, 3]),
        "class_index": np.array([0, 2], np.int32),
        "confidence": np.array([0.5, 0.6]),
        "votes": np.array([[-1, 0, 2], [1, 1, -1]], np.int16),
        "annotation_ids": np.array([-1, 12]),
        "measures": {"entropy": np.array([0.1, 0.2])},
    }


# Detections


def test_detections_have_length_and_classes():
    detections = Detections(**detection_columns())
    assert (len(detections), detections.num_classes) == (3, 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        detections.scores = np.zeros(3)


def test_detections_take_accepts_index_and_mask():
    detections = Detections(**detection_columns())
    assert detections.take(np.array([2, 0])).class_index.tolist() == [2, 0]
    assert detections.take(detections.member == 1).image_ids.tolist() == [7, 9]
    assert len(detections.take(np.zeros(0, np.int64))) == 0


def test_detections_concatenate_keeps_order_and_dtypes():
    detections = Detections(**detection_columns())
    joined = Detections.concatenate([detections, Detections.empty(4), detections.take(np.array([1]))])
    assert joined.class_index.tolist() == [0, 3, 2, 3]
    assert [getattr(joined, name).dtype for name in detection_columns()] == [
        getattr(detections, name).dtype for name in detection_columns()
    ]
    with pytest.raises(PredictionError, match="concatenate.*got 0"):
        Detections.concatenate([])


def test_detections_empty_has_no_row():
    nothing = Detections.empty(4)
    assert (len(nothing), nothing.num_classes) == (0, 4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image_ids", np.array([7.0, 7.0, 9.0]), "image_ids.*float64"),
        ("member", np.array([0, 1], np.int32), r"member.*\(2,\).*\(3,\)"),
        ("boxes", np.zeros((3, 5), np.float32), r"boxes.*\(3, 5\).*\(3, 4\)"),
        ("boxes", np.zeros((3, 4), np.int64), "boxes.*int64"),
        ("scores", np.array([0.1, np.nan, np.inf]), "scores.*2 NaN"),
        ("class_probs", np.zeros(3, np.float32), r"class_probs.*\(3,\).*\(3, C \+ 1\)"),
        ("class_probs", np.ones((3, 1), np.float32), r"class_probs.*got 1\)"),
        ("member", np.array([0, -1, 1]), "member.*got -1 in row 1, image_id 7, and 1 such"),
        ("scores", np.array([0.5, 0.5, 1.5]), r"scores.*\[0, 1\].*1.5 in row 2, image_id 9"),
        ("class_index", np.array([0, 4, 1]), r"class_index.*\[0, 4\).*got 4 in row 1, image_id 7"),
        ("class_probs", np.full((3, 5), 0.3, np.float32), "class_probs.*posterior.*row 0"),
        ("class_probs", np.tile([0.5, 0.6, -0.1, 0, 0], (3, 1)), "class_probs.*posterior.*row 0"),
    ],
)
def test_detections_invalid_column_raises(name, value, message):
    with pytest.raises(PredictionError, match=f"Detections.{message}"):
        Detections(**{**detection_columns(), name: value})


@pytest.mark.parametrize("box", [[1, 1, 1, 6], [1, 6, 5, 6], [5, 1, 1, 6]])
def test_detections_empty_or_inverted_box_raises(box):
    columns = detection_columns()
    columns["boxes"][1] = box
    with pytest.raises(PredictionError, match=r"boxes: .*x1 < x2 .*\[.*\] in row 1, image_id 7"):
        Detections(**columns)


def test_detections_posterior_tolerates_rounding():
    for factor in (0.9992, 1.0008):
        columns = detection_columns()
        columns["class_probs"] = columns["class_probs"] * np.float32(factor)
        assert len(Detections(**columns)) == 3


def sigmoid_columns():
    foreground = np.array([[0.9, 0.8, 0, 0.5], [0.1, 0, 0.3, 1], [0, 0, 0, 0]], np.float32)
    class_probs = np.column_stack((foreground, 1 - foreground.max(axis=1)))
    return {**detection_columns(), "class_probs": class_probs, "posterior_form": "sigmoid"}


def test_detections_sigmoids_keep_their_form():
    detections = Detections(**sigmoid_columns())
    assert detections.posterior_form == "sigmoid"
    assert Detections(**detection_columns()).posterior_form == "softmax"
    assert detections.take(np.array([2, 0])).posterior_form == "sigmoid"
    joined = Detections.concatenate([Detections.empty(4, "sigmoid"), detections])
    assert (joined.posterior_form, len(joined)) == ("sigmoid", 3)
    assert Detections.empty(4).posterior_form == "softmax"


@pytest.mark.parametrize("row", [[0.5, 0.2, 0, 0, 0.6], [1.2, 0, 0, 0, -0.2], [0.5, -0.1, 0, 0, 0.5], [0, 0, 0, 0, 0]])
def test_detections_row_that_is_not_sigmoid_raises(row):
    columns = sigmoid_columns()
    columns["class_probs"][1] = row
    with pytest.raises(PredictionError, match="class_probs: .*1 - max.*row 1, image_id 7"):
        Detections(**columns)


def test_detections_sigmoids_tolerate_rounding():
    columns = sigmoid_columns()
    columns["class_probs"][0, -1] += np.float32(0.0009)
    assert len(Detections(**columns)) == 3


def test_detections_mixed_or_unknown_form_raises():
    with pytest.raises(PredictionError, match="posterior_form.*sigmoid and softmax"):
        Detections.concatenate([Detections.empty(4), Detections(**sigmoid_columns())])
    with pytest.raises(PredictionError, match="posterior_form.*'logits'.*softmax, sigmoid"):
        Detections.empty(4, "logits")


# Clusters


def test_clusters_count_members_and_detections():
    clusters = Clusters(np.array([7, 9]), np.zeros((2, 4)), np.array([[0, -1, 2], [-1, -1, 1]]))
    assert (len(clusters), clusters.num_members) == (2, 3)
    assert clusters.num_fired.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ([[0, 1, 2], [-1, -1, -1]], "without detections"),
        ([[0, 1, 2], [0, -2, -1]], "got -2"),
        ([[0, 1, 2]], r"\(1, 3\).*\(2, E\)"),
    ],
)
def test_clusters_invalid_votes_raise(votes, message):
    with pytest.raises(PredictionError, match=f"Clusters.votes: .*{message}"):
        Clusters(np.array([7, 9]), np.zeros((2, 4)), np.array(votes))


def test_clusters_votes_beyond_the_detections_raise():
    detections = Detections(**detection_columns())
    Clusters(np.array([7]), np.zeros((1, 4)), np.array([[2, -1]])).validate_rows(detections)
    Clusters(np.zeros(0, int), np.zeros((0, 4)), np.zeros((0, 2), int)).validate_rows(Detections.empty(4))
    with pytest.raises(PredictionError, match="votes: .*3 detections .got 3"):
        Clusters(np.array([7]), np.zeros((1, 4)), np.array([[3, -1]])).validate_rows(detections)


# ObjectScores


def test_object_scores_concatenate_keeps_order_and_dtypes():
    objects = ObjectScores(**object_columns())
    joined = ObjectScores.concatenate([objects, objects, objects])
    assert len(joined) == 6
    assert joined.measures["entropy"].tolist() == [0.1, 0.2] * 3
    assert joined.class_index.dtype == np.int32
    with pytest.raises(PredictionError, match="concatenate.*got 0"):
        ObjectScores.concatenate([])


def test_object_scores_of_other_measures_raise():
    other = {**object_columns(), "measures": {"box_std": np.zeros(2)}}
    with pytest.raises(PredictionError, match=r"measures .*\['entropy'\] and \['box_std'\]"):
        ObjectScores.concatenate([ObjectScores(**object_columns()), ObjectScores(**other)])


def test_object_scores_infinite_measure_raises():
    broken = {**object_columns(), "measures": {"entropy": np.array([0.1, np.nan])}}
    with pytest.raises(PredictionError, match="ObjectScores.entropy.*1 NaN"):
        ObjectScores(**broken)


# ImageScores


def test_image_scores_keep_float_and_integer_components():
    scores = ImageScores(
        np.array([2, 5, 9]), np.array([0.1, 0.3, 0.2]), {"entropy": np.zeros(3), "num_objects": np.array([1, 0, 4])}
    )
    assert len(scores) == 3
    assert scores.components["num_objects"].dtype.kind == "i"


@pytest.mark.parametrize("image_ids", [[2, 9, 5], [2, 5, 5]])
def test_image_scores_unordered_ids_raise(image_ids):
    with pytest.raises(SelectionError, match=f"image_ids.*5 after {image_ids[1]}"):
        ImageScores(np.array(image_ids), np.zeros(3), {})


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (np.zeros(2), r"ImageScores.entropy.*\(2,\).*\(3,\)"),
        (np.array(["a", "b", "c"]), "ImageScores.entropy.*<U1"),
        (np.array([0.0, 0.0, np.inf]), "ImageScores.entropy.*1 NaN"),
    ],
)
def test_image_scores_invalid_component_raises(column, message):
    with pytest.raises(SelectionError, match=message):
        ImageScores(np.array([2, 5, 9]), np.zeros(3), {"entropy": column})


# Selection


def test_selection_keeps_its_order():
    selection = Selection(np.array([9, 2]), ("top_n", "floor"))
    assert len(selection) == 2
    assert selection.image_ids.tolist() == [9, 2]
    assert len(Selection(np.zeros(0, np.int64), ())) == 0


def test_selection_invalid_column_raises():
    with pytest.raises(SelectionError, match="reasons.*got 1.*2"):
        Selection(np.array([9, 2]), ("top_n",))
    with pytest.raises(SelectionError, match="image_ids.*1 repeated"):
        Selection(np.array([9, 9]), ("top_n", "top_n"))
