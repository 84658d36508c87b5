import torch
from tests.oracles import Linear, conv_net, uniform

from pellucid.core.fingerprint import hash_of, marks, tensors_of


def test_the_hash_is_that_of_structure_names_and_values():
    hashes = {hash_of(net) for net in (Linear(uniform(2, 3)), Linear(uniform(2, 3)), Linear(uniform(2, 3, seed=1)))}
    assert len(hashes) == 2
    assert len(hashes.pop()) == 32


def test_buffers_count_as_weights_do():
    net = conv_net()
    before = hash_of(net)
    net[1].running_mean[0] += 1
    assert hash_of(net) != before


def test_the_marks_show_every_way_of_writing():
    net = Linear(uniform(2, 3))
    seen = [marks(net)]
    assert seen[0] == marks(net)
    with torch.no_grad():
        net.linear.weight.add_(1)  # that autograd sees
    seen.append(marks(net))
    net.linear.weight.data[0, 0] += 1  # that it does not
    seen.append(marks(net))
    net.linear.weight = torch.nn.Parameter(net.linear.weight.detach().clone())
    seen.append(marks(net))
    assert all(one != other for i, one in enumerate(seen) for other in seen[:i])


def test_the_marks_of_what_inference_mode_made_can_be_taken():
    with torch.inference_mode():
        net = Linear(uniform(2, 3))
    assert marks(net) == marks(net)


def test_tensors_come_in_the_order_of_their_names():
    names = [name for name, _ in tensors_of(conv_net())]
    assert names == sorted(names)
    assert "1.running_mean" in names
