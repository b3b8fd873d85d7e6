"""The tutorial's training step in PyTorch, timed on request: see protocol.py."""

import os
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from protocol import BETA, LEARNING_RATE, images, labels, serve

if threads := os.environ.get("OMP_NUM_THREADS"):
    torch.set_num_threads(int(threads))


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
    """Compiled steps, channels last: PyTorch's fastest configuration on a CPU."""
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


class Step:
    """A training step on one batch on the GPU."""

    def __init__(self, batch_size, memory_format):
        image = torch.from_numpy(images("train")[:batch_size, None]).cuda()
        self.image = image.to(memory_format=memory_format)
        self.label = torch.from_numpy(labels("train")[:batch_size]).long().cuda()
        self.model = Cnn().cuda().to(memory_format=memory_format)
        # Fused: one launch for all parameters.
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=LEARNING_RATE, momentum=BETA, fused=True
        )
        self.update = self.optimizer.step

    def forward(self, image, label):
        return F.nll_loss(self.model(image), label)

    def __call__(self):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.forward(self.image, self.label)
        loss.backward()
        self.update()
        return loss.detach()


def set_tf32(is_on):
    torch.backends.cuda.matmul.allow_tf32 = is_on
    torch.backends.cudnn.allow_tf32 = is_on
    torch.backends.cudnn.benchmark = True


def captured(batch_size, memory_format):
    """Replays a step that was recorded as one CUDA graph."""
    step = Step(batch_size, memory_format)
    # The libraries choose their algorithms before the recording, which needs another stream.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    # The gradients of the recording are in its own memory.
    step.optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def run(count):
        for _ in range(count):
            graph.replay()
        float(loss)
        # The graph uses the memory of the batch, which must not be freed.
        return step

    return run


def graph(is_tf32, batch_size):
    """The faster of both memory formats."""
    set_tf32(is_tf32)

    def seconds(run):
        run(3)
        start = time.perf_counter()
        run(10)
        return time.perf_counter() - start

    formats = [torch.contiguous_format, torch.channels_last]
    return min((captured(batch_size, memory_format) for memory_format in formats), key=seconds)


def compiled(is_tf32, batch_size):
    """Forward pass, backward pass and update, each compiled into a CUDA graph."""
    step = Step(batch_size, torch.channels_last)
    # Compiled for each batch size and precision, which are more than the limit allows.
    torch._dynamo.config.recompile_limit = 64
    compile = partial(torch.compile, mode="reduce-overhead", dynamic=False)
    step.forward = compile(step.forward)
    update = step.update
    step.update = compile(lambda: update())

    def run(count):
        # Compiled code is compiled again if this has changed.
        set_tf32(is_tf32)
        for _ in range(count):
            torch.compiler.cudagraph_mark_step_begin()
            loss = step()
        float(loss)

    return run


requests = {"train_step": training}
for name, is_tf32 in [("f32", False), ("tf32", True)]:
    requests |= {
        f"graph_{name}": partial(graph, is_tf32),
        f"compiled_{name}": partial(compiled, is_tf32),
    }
serve(requests)
