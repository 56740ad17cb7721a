"""What a network that is told the plate of a site may learn amiss."""

from cellsignal.data.plates import shifts


def unseen_rotations(rotations: dict[str, list[int]]) -> list[list[int]]:
    """The cyclic shifts of the seen layouts that no experiment has, in order.

    `rotations`: the index of the plate group on plates 1, 2, ... of each training experiment
    (data.plates.rotations); those with an unknown plate, -1, tell nothing.
    """
    return [list(order) for order in sorted(shifts(rotations) - {tuple(order) for order in rotations.values()})]


def plate_warning(rotations: dict[str, list[int]]) -> str:
    """What a plate input will cost, in words; empty where the experiments are known to show every rotation.

    `rotations` of the experiments that the network is trained on, and of no others: the fourth rotation of
    RxRx1 occurs in its test experiments only. Without plate groups nothing is known of them, which is said too.
    """
    if not shifts(rotations):
        return ("warning: the rotations are not known, because no training experiment has a plate group on every plate. "
                "A network that is told the plate may learn which siRNAs lie there, and name hardly a well of a test "
                "experiment laid out in another way: leave the plate input out.")
    if not (unseen := unseen_rotations(rotations)):
        return ""
    orders = "; ".join(" ".join(str(group + 1) for group in order) for order in unseen)
    plates = " ".join(str(plate + 1) for plate in range(len(unseen[0])))
    return (f"warning: none of the {len(rotations)} training experiments has the plate groups {orders} on plates {plates}. "
            "A network that is told the plate learns which siRNAs lie there, "
            "and names hardly a well of a test experiment laid out that way: leave the plate input out.")
