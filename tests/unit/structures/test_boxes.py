import numpy as np
import pytest

from detcurate.structures.boxes import box_iou, paired_iou, xywh_to_xyxy, xyxy_to_xywh


def random_boxes(n, seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 80, (n, 2))
    return np.concatenate((corner, corner + rng.uniform(1, 60, (n, 2))), axis=1)


def test_conversion_by_hand():
    assert xywh_to_xyxy(np.array([[1.5, 2, 3, 4], [0, 0, 1, 1]])).tolist() == [[1.5, 2, 4.5, 6], [0, 0, 1, 1]]
    assert xyxy_to_xywh(np.array([[1.5, 2, 4.5, 6], [0, 0, 1, 1]])).tolist() == [[1.5, 2, 3, 4], [0, 0, 1, 1]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_conversion_is_invertible_and_keeps_dtype_and_input(dtype):
    boxes = np.array([[1, 2, 30, 40], [5, 6, 7, 8], [0, 0, 2, 9]], dtype)
    before = boxes.copy()
    back = xywh_to_xyxy(xyxy_to_xywh(boxes))
    assert back.tolist() == boxes.tolist() == before.tolist()
    assert back.dtype == dtype


@pytest.mark.parametrize("convert", [xywh_to_xyxy, xyxy_to_xywh])
def test_conversion_of_no_boxes_is_empty(convert):
    assert convert(np.zeros((0, 4))).shape == (0, 4)


def test_iou_by_hand():
    first = np.array([[0, 0, 10, 10], [0, 0, 4, 4]])
    second = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]])
    expected = [[1, 50 / 150, 0], [16 / 100, 0, 0]]
    assert box_iou(first, second) == pytest.approx(np.array(expected))
    assert paired_iou(first, second[:2]) == pytest.approx([1, 0])


def test_iou_equals_torchvision():
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    first, second = random_boxes(23, 0), random_boxes(17, 1)
    expected = torchvision.ops.box_iou(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    np.testing.assert_allclose(box_iou(first, second), expected, rtol=1e-12, atol=1e-15)


def test_paired_iou_equals_diagonal_of_box_iou():
    first, second = random_boxes(23, 2), random_boxes(23, 3)
    assert paired_iou(first, second).tolist() == np.diag(box_iou(first, second)).tolist()


def test_iou_is_symmetric_and_1_on_itself():
    first, second = random_boxes(11, 4), random_boxes(7, 5)
    assert box_iou(first, second).tolist() == box_iou(second, first).T.tolist()
    assert np.diag(box_iou(first, first)).tolist() == [1.0] * 11


def test_iou_without_area_is_zero():
    point = np.array([[3.0, 3.0, 3.0, 3.0]])
    assert box_iou(point, np.concatenate((point, [[0, 0, 9, 9]]))).tolist() == [[0.0, 0.0]]
    assert paired_iou(point, point).tolist() == [0.0]


def test_iou_of_no_boxes_is_empty():
    assert box_iou(np.zeros((0, 4)), random_boxes(3, 6)).shape == (0, 3)
    assert box_iou(random_boxes(2, 6), np.zeros((0, 4))).shape == (2, 0)
    assert paired_iou(np.zeros((0, 4)), np.zeros((0, 4))).shape == (0,)
