"""Writes the fixtures beside this file. Run with PyTorch 1.13: `python tests/data/torch/make.py`.

The files hold models of a few numbers each. They are read, never loaded, by the tests.
"""

from pathlib import Path

import torch

HERE = Path(__file__).parent


class Loops(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)
        self.count = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(self.count):
            x = torch.relu(self.linear(x)) + i
        return x


def main() -> None:
    torch.manual_seed(0)
    version = torch.__version__.partition("+")[0].replace(".", "_")
    torch.jit.save(torch.jit.script(Loops()), str(HERE / f"script_{version}.pt"))
    torch.jit.save(
        torch.jit.trace(torch.nn.GRU(2, 2), torch.ones(2, 1, 2)), str(HERE / f"script_trace_{version}.pt")
    )
    torch.jit.save(
        torch.jit.freeze(torch.jit.script(Loops().eval())), str(HERE / f"script_frozen_{version}.pt")
    )
    torch.save(Loops().state_dict(), HERE / f"state_{version}.pt")
    torch.save(torch.nn.Transformer(2, 1, 1, 1, 2).encoder, HERE / f"module_{version}.pt")
    torch.save(torch.nn.GRU(2, 2), HERE / f"legacy_{version}.pt", _use_new_zipfile_serialization=False)


main()
