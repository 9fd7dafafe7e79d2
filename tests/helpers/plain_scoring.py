"""The definitions of scoring in plain Python, as oracles of the compiled ones."""

import math

import numpy as np

from detcurate.structures.boxes import box_iou


def iou_of(first, second):
    return float(box_iou(np.asarray(first, np.float64), np.asarray(second, np.float64))[0, 0])


def content_key(detections):
    """Best first, then by what the detection says, and by member only where they say exactly the same."""

    def key(row):
        box, probs = tuple(detections.boxes[row]), tuple(detections.class_probs[row])
        return (-detections.scores[row], box, detections.class_index[row], probs, detections.member[row])

    return key


def associate_slowly(detections, num_members, iou_threshold):
    """The sequential association: image_ids, votes and float64 mean boxes."""
    clusters = []
    for image_id in np.unique(detections.image_ids):
        here = []
        for row in sorted(np.flatnonzero(detections.image_ids == image_id), key=content_key(detections)):
            overlaps = [iou_of(detections.boxes[row], np.mean(c["boxes"], axis=0)) for c in here]
            if not overlaps or max(overlaps) < iou_threshold:
                here.append({"image_id": image_id, "boxes": [], "votes": {}})
                target = here[-1]
            else:
                target = here[int(np.argmax(overlaps))]
                if detections.member[row] in target["votes"]:
                    continue
            target["boxes"].append(detections.boxes[row].astype(np.float64))
            target["votes"][int(detections.member[row])] = row
        clusters += here
    votes = [[c["votes"].get(e, -1) for e in range(num_members)] for c in clusters]
    return [c["image_id"] for c in clusters], votes, [np.mean(c["boxes"], axis=0) for c in clusters]


def h(p):
    return sum(-value * math.log(value) for value in (p, 1 - p) if value > 0)


def entropy(probs):
    return sum(-p * math.log(p) for p in probs if p > 0)


def posterior(detections, row):
    """What a row says, or a miss (row -1): C + 1 probabilities, of which a sigmoid head means the first C."""
    if row < 0:
        return [0.0] * detections.num_classes + [1.0]
    probs = detections.class_probs[row].astype(np.float64)
    return list(probs if detections.posterior_form == "sigmoid" else probs / probs.sum())


def consensus(detections, predictions):
    mean = np.mean(predictions, axis=0)
    if detections.posterior_form == "sigmoid":
        mean[-1] = 1 - max(mean[:-1])
    return mean


def measure_cluster(detections, votes, box, missing="background"):
    """All of MEASURES, and the consensus posterior, of one cluster."""
    fired = [row for row in votes if row >= 0]
    requested = list(votes) if missing == "background" else fired
    predictions = [posterior(detections, row) for row in requested]
    favourites = [
        int(np.argmax(detections.class_probs[row])) if row >= 0 else detections.num_classes for row in requested
    ]
    counts = [favourites.count(k) for k in range(detections.num_classes + 1)]
    mean = consensus(detections, predictions)
    if detections.posterior_form == "sigmoid":
        total = [h(p) for p in mean[:-1]]
        own = [np.mean([h(prediction[k]) for prediction in predictions]) for k in range(detections.num_classes)]
    else:
        total, own = [entropy(mean)], [np.mean([entropy(prediction) for prediction in predictions])]
    first, second = sorted(mean, reverse=True)[:2]
    boxes = detections.boxes[fired].astype(np.float64)
    sizes = boxes[:, 2:] - boxes[:, :2]
    numbers = np.hstack(((boxes[:, :2] + boxes[:, 2:]) / 2 / sizes.mean(axis=0), np.log(sizes)))
    overlap = np.mean([iou_of(b, box) for b in boxes])
    return {
        "mutual_information": max(t - o for t, o in zip(total, own, strict=True)),
        "entropy": max(total),
        "expected_entropy": max(own),
        "variation_ratio": 1 - max(counts) / len(requested),
        "vote_entropy": entropy([count / len(requested) for count in counts]),
        "margin": 1 - (first - second),
        "iou_dispersion": 1 - overlap,
        "box_std": math.sqrt(numbers.var(axis=0).mean()),
        "existence_entropy": h(sum(counts[:-1]) / len(votes)),
    }, mean


def match_slowly(detections, labels, num_members, iou_threshold):
    """Match each member's detections to the labels: votes (J, E) and IoU (J, E)."""
    votes = np.full((len(labels), num_members), -1)
    overlaps = np.zeros((len(labels), num_members))
    for row in sorted(range(len(detections)), key=content_key(detections)):
        here = [
            (iou_of(detections.boxes[row], labels.boxes[j].astype(np.float32)), -j)
            for j in np.flatnonzero(labels.image_ids == detections.image_ids[row])
        ]
        best, label = max(here, default=(0.0, 0))
        member = detections.member[row]
        if best >= iou_threshold and votes[-label, member] < 0:
            votes[-label, member], overlaps[-label, member] = row, best
    return votes, overlaps


def measure_label(detections, label_class, votes, overlaps, trajectories):
    """All of LABEL_MEASURES, and the consensus posterior, of one label."""
    predictions = [posterior(detections, row) for row in votes]
    right = [row >= 0 and int(np.argmax(detections.class_probs[row])) == label_class for row in votes]
    q = [0.0 if row < 0 else prediction[label_class] for row, prediction in zip(votes, predictions, strict=True)]
    last = detections.num_classes + (detections.posterior_form == "softmax")
    target = np.eye(detections.num_classes + 1)[label_class]
    return {
        "error_count": 1 - sum(right) / len(votes),
        "el2n": np.mean([math.dist(prediction[:last], target[:last]) for prediction in predictions]),
        "forgetting": sum(
            right[a] and not right[b] for run in trajectories for a, b in zip(run, run[1:], strict=False)
        ),
        "low_confidence": 1 - np.mean(q),
        "variability": np.std(q),
        "prediction_variance": np.var(q) + np.var(overlaps),
    }, consensus(detections, predictions)


def share_inside(box, region):
    width, height = np.minimum(box[2:], region[2:]) - np.maximum(box[:2], region[:2])
    return max(width, 0.0) * max(height, 0.0) / float(np.prod(np.asarray(box[2:]) - box[:2]))


def label_error(clusters, labels, label_means, iou_threshold):
    """The three label-error scores; ``clusters`` are dicts of image_id, box, confidence and agreement."""
    objects = np.flatnonzero(~labels.iscrowd)
    missing_label, nearest, excess = [], [], np.zeros(len(objects))
    weights, own = np.zeros(len(objects)), np.full(len(objects), -1)
    for row, c in enumerate(clusters):
        here = labels.image_ids == c["image_id"]
        crowds = [share_inside(c["box"], labels.boxes[j]) for j in np.flatnonzero(here & labels.iscrowd)]
        overlaps = [iou_of(c["box"], labels.boxes[j].astype(np.float32)) if here[j] else 0.0 for j in objects]
        best = max(overlaps, default=0.0)
        missing_label.append(
            0.0 if max(crowds, default=0) >= 0.5 else c["confidence"] * max(1 - best / iou_threshold, 0)
        )
        nearest.append(overlaps.index(best) if best > 0 else -1)
        for k, overlap in enumerate(overlaps):
            speaks = overlap >= 0.05 and (k == nearest[-1] or best < iou_threshold)
            if speaks and c["confidence"] * overlap > weights[k]:
                weights[k] = c["confidence"] * overlap
                excess[k] = c["confidence"] * max(c["agreement"] - overlap, 0.0)
                own[k] = row
    wrong_class = [
        max(max(p for k, p in enumerate(mean[:-1]) if k != y) - mean[y], 0.0) if len(mean) > 2 else 0.0
        for mean, y in zip(label_means, labels.class_index[objects], strict=True)
    ]
    scores = {"missing_label": missing_label, "wrong_class": wrong_class, "inaccurate_box": excess}
    return scores, nearest, own


def correction(kind, row, objects, num_classes):
    """Box, class, score and votes in place of one suspected label; class -1 where there is none."""
    votes, label_class = objects.votes[row].tolist(), objects.class_index[row]
    if kind == "missing_label":
        return objects.boxes[row], label_class, objects.confidence[row], votes.count(label_class)
    box, consensus = objects.consensus_boxes[row], objects.consensus_class[row]
    confidence = objects.consensus_confidence[row]
    if kind == "inaccurate_box":
        return box, consensus, confidence, objects.consensus_votes[row]
    counts = {k: votes.count(k) for k in range(num_classes) if k != label_class}
    most = max(counts.values(), default=0)
    if most == 0:
        return box, -1, 0.0, 0
    best = consensus if counts.get(consensus) == most else min(k for k in counts if counts[k] == most)
    return box, best, confidence if best == consensus else most / len(votes), most
