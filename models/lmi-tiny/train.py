"""Trains lmi-tiny. Seeded; what step n sees depends on the seed and on n alone; resumes from WORK/last.pt.

    python train.py --work WORK [--tokens 35e6] [--valid BOOKS_VALID]

Stages go from short windows with many exercises to windows of 512 with few: attention that looks things up
forms far sooner where the thing is near and the loss is full of it. The learning rate warms up, stays, and
falls to zero over the last part (--decay) of the tokens. --finish N begins the fall where a stopped run
stands (or goes on with one already begun, faster or slower) and ends after N more tokens; the log records
it, and --tokens/--decay repeat it from scratch.
"""
import argparse
import json
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import data
import evaluate
from model import Config, Model

# (window, windows per step, share of exercises, until this many tokens)
STAGES = [(128, 32, 0.5, 4e6), (256, 16, 0.35, 8e6), (512, 8, 0.3, float("inf"))]


def stage(tokens):
    return next(s for s in STAGES if tokens < s[3])


def rate(tokens, step, total, decay, peak):
    """Factor on the learning rates: warm-up over 100 steps, flat, then linear from `peak` to zero at `total`."""
    return min(1.0, (step + 1) / 100, peak * max(0.0, (total - tokens) / decay))


def optimizers(model):
    """Muon for the matrices of the layers, AdamW for embedding and norms."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    return [torch.optim.Muon(matrices, lr=5e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)]


class Team:
    """Data parallelism: each process takes every n-th row of a step's windows, on one thread, and the
    gradients are averaged. On a busy machine this loses less than threads that meet after every operation.
    """

    def __init__(self, model, rank, count, folder):
        self.rank, self.count = rank, count
        parameters = list(model.parameters())
        # all gradients in one buffer, then the loss and whether somebody was asked to stop
        self.flat = torch.zeros(sum(p.numel() for p in parameters) + 2)
        views = self.flat[:-2].split([p.numel() for p in parameters])
        for p, view in zip(parameters, views):
            p.grad = view.view_as(p)
        if count > 1:
            dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count,
                                    timeout=timedelta(hours=12))

    def average(self, loss, stop):
        """Averages the gradients over the processes; returns the mean loss and whether to stop."""
        self.flat[-2], self.flat[-1] = loss, float(stop)
        if self.count > 1:
            dist.all_reduce(self.flat)
            self.flat /= self.count
        self.flat[:-2] *= min(1.0, 1.0 / (self.flat[:-2].norm().item() + 1e-6))  # clipped to norm 1
        return self.flat[-2].item(), self.flat[-1].item() > 0


def work(rank, a):
    """What every process does. a: the command line's arguments."""
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    vocabulary = a.work / "lmi-tiny.model"
    exercises = data.Exercises(vocabulary, np.fromfile(a.work / "books.u16", np.uint16))
    if a.family == "llama":
        config = vars(Config(vocab=exercises.vocab))
        model = Model(Config(**config))
    else:
        from siblings import Sibling
        config = {"family": a.family, "vocab": exercises.vocab}
        model = Sibling(**config)
    team = Team(model, rank, a.processes, a.work.resolve())
    opts = optimizers(model)
    bases = [g["lr"] for o in opts for g in o.param_groups]
    state = {"step": 0, "tokens": 0, "position": 0, "seconds": 0.0, "total": a.tokens, "decay": a.decay,
             "peak": 1.0}
    last = a.work / "last.pt"
    if last.exists():
        saved = torch.load(last, weights_only=True)
        model.load_state_dict(saved["model"])
        for o, s in zip(opts, saved["optimizers"]):
            o.load_state_dict(s)
        state |= saved["state"]
    if a.finish:
        now = rate(state["tokens"], state["step"], state["total"], state["decay"], state["peak"])
        state.update(total=state["tokens"] + a.finish, decay=a.finish, peak=now)
    log = open(a.work / "log.jsonl" if rank == 0 else os.devnull, "a", buffering=1)  # noqa: SIM115 (as long as the run)
    log.write(json.dumps({"begin": state}) + "\n")
    stop = []
    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, lambda *_: stop.append(1))
    loss_of = torch.compile(model.loss, dynamic=False) if a.compile else model.loss
    valid = evaluate.book_windows(a.valid, vocabulary, 3) if a.valid and rank == 0 else None

    def save():
        if rank == 0:
            temporary = a.work / "last.tmp"
            torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in opts],
                        "state": state, "config": config}, temporary)
            os.replace(temporary, last)

    began, saved_at, losses = time.monotonic() - state["seconds"], time.monotonic(), []
    base_rates = [(g, base) for g, base in zip((g for o in opts for g in o.param_groups), bases)]
    asked = False
    while state["tokens"] < state["total"] and not asked:
        size, count, share, _ = stage(state["tokens"] / a.stretch)
        rng = np.random.default_rng([a.seed, state["step"]])
        recall = int(count * share + rng.random())
        ids, targets, weights, state["position"] = data.batch(
            exercises, rng, size, count, recall, state["position"])
        factor = rate(state["tokens"], state["step"], state["total"], state["decay"], state["peak"])
        for g, base in base_rates:
            g["lr"] = base * factor
        team.flat.zero_()
        mine = [torch.from_numpy(x[rank::a.processes].copy()) for x in (ids, targets, weights)]
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(*mine)
        loss.backward()
        loss, asked = team.average(loss.item(), bool(stop))
        for o in opts:
            o.step()
        state["step"] += 1
        state["tokens"] += ids.size
        state["seconds"] = time.monotonic() - began
        losses.append(loss)
        if state["step"] % 50 == 0:
            line = {k: state[k] for k in ("step", "tokens")} | {
                "window": size, "rate": round(factor, 3), "loss": round(float(np.mean(losses)), 4),
                "minutes": round(state["seconds"] / 60, 1)}
            if state["step"] % 500 == 0 and rank == 0:
                if valid:
                    line["nats_per_byte"] = round(evaluate.nats_per_byte(model, *valid)[0], 4)
                line["passkey"] = {n: round(evaluate.passkey(model, exercises, n, 32, seed=0)[0], 3)
                                   for n in (128, 256, 504) if n <= size}
            log.write(json.dumps(line) + "\n")
            losses = []
        if time.monotonic() - saved_at > 180:
            save()
            saved_at = time.monotonic()
    save()
    log.write(json.dumps({"end": state}) + "\n")
    if a.processes > 1:
        dist.destroy_process_group()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--work", type=Path, required=True)
    p.add_argument("--tokens", type=float, default=35e6)
    p.add_argument("--decay", type=float, default=10e6, help="tokens over which the rate falls to zero")
    p.add_argument("--finish", type=float, help="begin the fall now and end after so many tokens")
    p.add_argument("--valid", help="folder or tar of held-out books, for the log")
    p.add_argument("--family", choices=["llama", "gptneox", "gptj", "mpt"], default="llama", help="others: siblings.py")
    p.add_argument("--stretch", type=float, default=1, help="tokens of the stages, times this")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--processes", type=int, default=2)
    p.add_argument("--threads", type=int, default=1, help="of each process")
    p.add_argument("--compile", action="store_true", help="torch.compile: about an eighth faster")
    a = p.parse_args()
    (a.work / "meet").unlink(missing_ok=True)
    others = [mp.get_context("spawn").Process(target=work, args=(r, a), daemon=True)
              for r in range(1, a.processes)]
    for o in others:
        o.start()
    work(0, a)
    for o in others:
        o.join()


if __name__ == "__main__":
    main()
