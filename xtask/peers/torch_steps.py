"""The tutorial's training step in PyTorch, timed for `cargo xtask bench`: see protocol.py."""

import os

import torch
import torch.nn.functional as F
from torch import nn

from protocol import BETA, LEARNING_RATE, images, labels, serve

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.dense1 = nn.Linear(3136, 256)
        self.dense2 = nn.Linear(256, 10)

    def forward(self, x):
        x = F.avg_pool2d(F.relu(self.conv1(x)), 2)
        x = F.avg_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.dense1(x.flatten(1)))
        return F.log_softmax(self.dense2(x), -1)


def training(batch_size):
    """Compiled steps, channels last: PyTorch's fastest configuration."""
    image = torch.from_numpy(images("train")[:, None]).to(memory_format=torch.channels_last)
    label = torch.from_numpy(labels("train")).long()
    model = Cnn().to(memory_format=torch.channels_last)
    forward = torch.compile(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=BETA)
    order = torch.randperm(len(label))
    done = 0

    def train_step(image, label):
        optimizer.zero_grad(set_to_none=True)
        log_probs = forward(image)
        loss = F.nll_loss(log_probs, label)
        loss.backward()
        optimizer.step()
        return loss.detach(), (log_probs.argmax(-1) == label).float().mean()

    def run(count):
        nonlocal done
        if (done + count) * batch_size > len(order):
            done = 0
        metrics = []
        for step in range(done, done + count):
            index = order[step * batch_size : (step + 1) * batch_size]
            metrics.append(train_step(image[index], label[index]))
        done += count
        [(float(loss), float(accuracy)) for loss, accuracy in metrics]

    return run


serve({"train_step": training})
