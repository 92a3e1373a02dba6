"""Local learning on a GPU: gradients are those of the CPU, mixed precision trains, the trainer resumes."""

import pytest
import torch

from polyak.local import DGL, MAN, AugLocal, Greedy, LocalNetwork, LocalTrainer, cifar_resnet, local_backward

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("auxiliary", [Greedy(), DGL(), AugLocal(2), MAN()], ids=lambda a: type(a).__name__)
def test_gradients_are_those_of_the_cpu(auxiliary):
    torch.manual_seed(0)
    images, labels = torch.rand(8, 3, 32, 32, dtype=torch.float64), torch.arange(8)
    network = LocalNetwork(cifar_resnet(20).double(), 4, auxiliary, example=images)
    local_backward(network, images, labels)
    expected = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    network.cuda()
    local_backward(network, images.cuda(), labels.cuda())
    assert expected.keys() == {n for n, p in network.named_parameters() if p.grad is not None}
    for name, p in network.named_parameters():
        if name in expected:
            torch.testing.assert_close(p.grad.cpu(), expected[name], rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_trainer_in_mixed_precision(dtype):
    torch.manual_seed(0)
    images, labels = torch.rand(64, 3, 32, 32), torch.arange(64) % 2
    images[labels == 1] *= 0.5
    model = cifar_resnet(20, 2).cuda()
    trainer = LocalTrainer(model, lambda ps: torch.optim.SGD(ps, 0.05, momentum=0.9), 4, MAN(), autocast=dtype)
    first, *_, last = trainer.fit([(images, labels)], 20)
    assert last.loss < 0.1 * first.loss
    assert last.accuracy > 0.9  # in training mode: 20 batches are too few for the statistics of batch normalization
