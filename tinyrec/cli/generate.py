"""Let a trained model go on writing; the text appears as it is made.

  tinyrec generate runs/hawk-pydoc --prompt "The module" --temperature 0.8
  tinyrec generate runs/recurrent-depth-pydoc --recurrence 32 --exit kl
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from threadpoolctl import threadpool_limits

from ..data import encode
from ..generate import generate, stream_text
from ..train import streams
from .depth import add_generate_arguments, depth_reader, speculation, tell
from .models import add_device, check_length, load_model
from .parser import Mistake, Parser, as_mistake
from .runs import RunFolder

USAGE = "RUN [options]"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or a checkpoint")
    parser.add_argument("--prompt", default="\n", metavar="TEXT", help="what to go on from (default a line feed)")
    parser.add_argument("--tokens", type=int, default=500, metavar="N", help="bytes to write (default 500)")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="X", help="0: the likeliest (default 0.8)")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="choose among the K likeliest; 0: all")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="choose among the likeliest with share P")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choices (default 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the text into FILE, too")
    add_device(parser)
    add_generate_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    saved, options = RunFolder(arguments.run).load()
    if options.task:
        raise Mistake(f"{arguments.run} was trained on the task {options.task}; there is no text in it to generate")
    if not arguments.prompt:
        raise Mistake("the prompt is empty; a model goes on from something, a line feed for instance")
    model, prompt = load_model(saved, arguments.device), encode(arguments.prompt)
    check_length(model.config, len(prompt) + arguments.tokens - 1)  # the last token is not read
    random = streams(arguments.seed)
    reader = depth_reader(arguments, model, random.init)
    with as_mistake(ValueError):
        tokens = (
            speculation(arguments, model, prompt)
            if arguments.draft_recurrence is not None
            else generate(
                model,
                prompt,
                arguments.tokens,
                temperature=arguments.temperature,
                top_k=arguments.top_k,
                top_p=arguments.top_p,
                rng=random.sampling,
                reader=reader,
            )
        )
    with contextlib.ExitStack() as stack:
        outputs = [sys.stdout]
        if arguments.out:
            outputs.append(stack.enter_context(arguments.out.open("w", encoding="utf-8")))
        stack.enter_context(threadpool_limits(1))  # one token at a time is too little work to share
        for output in outputs:
            output.write(arguments.prompt.lstrip("\n"))
        for text in stream_text(tokens):
            for output in outputs:
                output.write(text)
                output.flush()
        print()
    tell(reader, arguments.tokens)
    return 0
