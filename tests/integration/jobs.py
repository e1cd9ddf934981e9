"""What the tests run in processes of their own. loraga is imported within functions: some run where it cannot be."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tests.integration.common import (
    adapter_state,
    assert_same,
    base,
    eval_logits,
    probe,
    rows,
    started,
    trainer,
    write,
)


def plain_peft(directories: list[str], output: str, name: str = "Llama") -> None:
    """Logits of each directory on the original base, by plain PEFT alone."""
    from peft import PeftModel

    try:
        import loraga
    except ModuleNotFoundError:
        loraga = None
    assert loraga is None
    logits = {}
    for directory in directories:
        model = PeftModel.from_pretrained(base(name), directory)
        assert not [key for key in model.state_dict() if "lora_offset" in key]
        logits[directory] = eval_logits(model)
    write(logits, output)


def other_tool(base_directory: str, adapter: str, output: str) -> None:
    """What LLaMA-Factory's adapter_name_or_path and axolotl's lora_model_dir come down to, and a run of Trainer."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def fresh():
        return AutoModelForCausalLM.from_pretrained(base_directory).eval()

    model = PeftModel.from_pretrained(fresh(), adapter, is_trainable=True)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}
    logits = {"base": eval_logits(fresh()), "start": eval_logits(model)}
    write(adapter_state(model), f"{output}/start.safetensors")
    run = trainer(model, f"{output}/run", max_steps=4)
    run.train()
    run.save_model(f"{output}/trained")
    logits["trained"] = eval_logits(model)
    for name, directory in (("reloaded", f"{output}/trained"), ("checkpoint", f"{output}/run/checkpoint-4")):
        logits[name] = eval_logits(PeftModel.from_pretrained(fresh(), directory))
    resumed = PeftModel.from_pretrained(fresh(), adapter, is_trainable=True)
    trainer(resumed, f"{output}/resumed", max_steps=4).train(resume_from_checkpoint=f"{output}/run/checkpoint-2")
    logits["resumed"] = eval_logits(resumed)
    write(logits, f"{output}/logits.safetensors")


def resume(checkpoint: str, run: str, output: str) -> None:
    """Goes on from a checkpoint in a new process, without a gradient pass."""
    import loraga

    model = loraga.load(base(), checkpoint, is_trainable=True)
    trainer(model, run).train(resume_from_checkpoint=checkpoint)
    write(adapter_state(model), output)


class Killer(TrainerCallback):
    """Kills its own process at the end of a step, or right after a checkpoint was written."""

    def __init__(self, event: str, step: int) -> None:
        self.event, self.step = event, step

    def on_step_end(self, args, state, control, **kwargs):
        self._kill("on_step_end", state)

    def on_save(self, args, state, control, **kwargs):
        self._kill("on_save", state)

    def _kill(self, event, state):
        if (event, state.global_step) == (self.event, self.step):
            die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_half_and_die(path: Path) -> None:
    """Leaves the first half of a file that was just written."""
    content = path.read_bytes()
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        os.fsync(file.fileno())
    die()


def die_while_writing(file_name: str, folder: str) -> None:
    """Makes this process die when half of a file is written into a folder whose path holds this word."""
    import transformers.trainer
    import transformers.trainer_callback

    import loraga.adapter_directory

    def dying(write_file, position):
        def wrapped(*args, **kwargs):
            result = write_file(*args, **kwargs)
            path = Path(args[position])
            if path.name == file_name and folder in str(path):
                write_half_and_die(path)
            return result

        return wrapped

    loraga.adapter_directory.save_file = dying(loraga.adapter_directory.save_file, 1)
    torch.save = dying(torch.save, 1)
    state = transformers.trainer_callback.TrainerState
    state.save_to_json = dying(state.save_to_json, 1)


def killed(run: str, output: str, event: str, step: int) -> None:
    """A training run that ends by SIGKILL, or by itself where event is "never"."""
    if event.startswith("writing "):
        die_while_writing(event.removeprefix("writing "), f"checkpoint-{step}")
    model = started()
    trainer(model, run, callbacks=[Killer(event, step)], save_total_limit=2).train()
    write(adapter_state(model), output)


class Signaller(TrainerCallback):
    """Sends its own process a signal at the end of a step."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


def command(words: list[str], folder: str, output: str, event: str = "never", step: int = 0) -> None:
    """`loraga WORDS` in a folder, to which something happens; writes its exit code and its stderr."""
    import contextlib
    import io
    import resource

    from transformers.trainer import DEFAULT_CALLBACKS

    from loraga.cli import main

    os.chdir(folder)
    if event.startswith("writing "):
        die_while_writing(event.removeprefix("writing "), "/.start." if step == 0 else f"checkpoint-{step}")
    elif event.startswith("signal "):
        DEFAULT_CALLBACKS.append(Signaller(int(event.removeprefix("signal ")), step))
    elif event == "full disk":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (step, resource.RLIM_INFINITY))  # bytes of a file
    elif event == "evaluation":
        from loraga.lab import evaluation

        evaluation.generate = _dying_at_the_second_call(evaluation.generate)
    else:
        DEFAULT_CALLBACKS.append(Killer(event, step))
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(words)
    if event == "full disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    Path(output).write_text(json.dumps({"code": code, "stderr": said.getvalue()}))


def _dying_at_the_second_call(function):
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            die()
        return function(*args, **kwargs)

    return wrapped


def go_on(run: str, output: str) -> None:
    """What a user's script does after a run was killed."""
    import loraga
    from loraga.checkpoint import newest_complete_checkpoint

    newest = newest_complete_checkpoint(run)
    model = loraga.load(base(), newest, is_trainable=True)
    trainer(model, run, save_total_limit=2).train(resume_from_checkpoint=str(newest))
    write(adapter_state(model), output)
    Path(output).with_suffix(".resumed").write_text(newest.name)


def load_saved_state(directory: str, output: str) -> None:
    """accelerate's and torch's ways of loading a whole model, into one that started elsewhere."""
    from accelerate import Accelerator
    from safetensors.torch import load_model

    accelerator = Accelerator(cpu=True)
    model = started(seed=4, gamma=64)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.load_state(f"{directory}/accelerate")
    manual_steps(model, optimizer, 2)
    write(adapter_state(model), f"{output}.accelerate")
    other = started(seed=4, gamma=64)
    load_model(other, f"{directory}/state.safetensors")
    write({"logits": eval_logits(other), **adapter_state(other)}, f"{output}.state")


def manual_steps(model, optimizer, count: int) -> None:
    """Steps on a fixed batch, in train mode with dropout; the random state goes on from where it is."""
    model.train()
    for _ in range(count):
        model(**probe(3)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def distributed(rank: int, rendezvous: str, output: str) -> None:
    """One of two processes that train the same adapter on data of their own."""
    from torch import distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    model = started(lora_dropout=0.0)
    ignored = set(model._ddp_params_and_buffers_to_ignore)
    offsets = {name: buffer for name, buffer in model.named_buffers() if "lora_offset" in name}
    assert ignored == set(offsets)
    assert offsets
    wrapped = DistributedDataParallel(model)
    assert not [buffer for buffer in wrapped.modules_buffers if any(buffer is each for each in offsets.values())]
    name, buffer = next(iter(offsets.items()))
    before = buffer.clone()
    buffer.add_(rank)  # rank 1's differs now, and a broadcast at the forward would bring it back
    wrapped(**probe(3))
    assert torch.equal(buffer, before + rank), f"{name} was broadcast"
    buffer.copy_(before)
    data = rows(8)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for step in range(3):
        row = data[2 * step + rank]
        wrapped(input_ids=row["input_ids"][None], labels=row["labels"][None]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    write(adapter_state(model), f"{output}.{rank}")
    dist.destroy_process_group()


def initialize_trainer(rank: int, port: int, output: str, wrapped: bool) -> None:
    """One of two processes of a run of Trainer, started from both processes' batches."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from torch import distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    import loraga
    from tests.integration.trainers import TRAINERS

    kind = TRAINERS["Trainer"]
    model = kind.peft_model(lora_dropout=0.0, r=8)  # at this rank the factors of a gradient hold all of it
    trainer = kind.make(f"{output}.run", model, max_steps=2, save_strategy="no")
    assert trainer.accelerator.num_processes == 2
    if wrapped:
        trainer.model_wrapped = DistributedDataParallel(trainer.model)
    seen: dict[str, Any] = {}

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            seen.setdefault("start", adapter_state(model))

    report = loraga.initialize_trainer(trainer, 2, progress=False)
    assert (report is None) == wrapped
    trainer.add_callback(Watch())
    trainer.train()
    write(seen["start"], f"{output}.start.{rank}")
    write(adapter_state(trainer.model), f"{output}.end.{rank}")
    dist.destroy_process_group()


def sharded_trainer(rank: int, port: int, output: str) -> None:
    """One of two processes: FSDP2 shards a model before `initialize_trainer`, and another one after it.

    Then each takes three steps on this process's data.
    """
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from torch import distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    import loraga
    from tests.integration.trainers import TRAINERS

    def shard(model):
        for layer in model.get_base_model().model.layers:
            fully_shard(layer)
        fully_shard(model)

    def gathered(model):
        return {key: getattr(value, "full_tensor", lambda v=value: v)() for key, value in adapter_state(model).items()}

    kind, states, expected = TRAINERS["Trainer"], {}, eval_logits(TRAINERS["Trainer"].base())
    for name in ("before", "after"):
        model = kind.peft_model(lora_dropout=0.0, r=3)
        trainer = kind.make(f"{output}.{name}", model, max_steps=1, save_strategy="no")
        if name == "before":
            shard(model)
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        report = loraga.initialize_trainer(trainer, 2, progress=False)
        if name == "after":  # an optimizer holds the shards
            shard(model)
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        assert report.function_change == 0
        assert torch.equal(eval_logits(model), expected)
        states |= {f"{name} start {key}": value for key, value in gathered(model).items()}
        norms = {layer: torch.tensor(each.offset_norm) for layer, each in report.layers.items()}
        states |= {f"{name} norm {layer}": value for layer, value in norms.items()}
        model.train()
        for step in range(3):
            row = rows(8)[2 * step + rank]
            model(input_ids=row["input_ids"][None], labels=row["labels"][None]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        states |= {f"{name} end {key}": value for key, value in gathered(model).items()}
        with model.disable_adapter():
            assert torch.equal(eval_logits(model), expected)
        whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        model.save_pretrained(f"{output}.{name}.saved", state_dict=whole, is_main_process=rank == 0)
    write(states, f"{output}.{rank}")
    half, row = kind.base().half(), rows(8)[rank]
    for layer in half.model.layers:
        fully_shard(layer)
    fully_shard(half)
    batch = {key: row[key][None] for key in ("input_ids", "labels")}
    # scaled by 2^16, one process's loss would overflow, and the other's not
    large = lambda model, batch: model(**batch).loss * (2.0**10 if rank == 0 else 1.0)  # noqa: E731
    assert loraga.estimate_gradients(half, [batch], rank=1, loss=large, progress=False)
    Path(f"{output}.{rank}.errors").write_text(json.dumps(refusals(output)))
    dist.destroy_process_group()


def refusals(output: str) -> list[str]:
    """What `initialize_trainer` says where a process cannot reach every weight: FSDP1 itself does not run on a CPU."""
    from accelerate import FullyShardedDataParallelPlugin

    import loraga
    from tests.integration.trainers import TRAINERS

    messages = []
    for case in ("ZeRO-3", "weights in one process"):
        trainer = TRAINERS["Trainer"].make(f"{output}.refused")
        if case == "ZeRO-3":
            next(trainer.model.parameters()).ds_id = 0  # as DeepSpeed marks its shards
        else:
            trainer.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2, cpu_ram_efficient_loading=True
            )
        try:
            loraga.initialize_trainer(trainer, 2, progress=False)
        except loraga.AdapterError as error:
            messages.append(str(error))
    return messages


def save_at_once(directory: str, rounds: int) -> None:
    """Two processes save two adapters into one directory, again and again; after each round it is one's, whole."""
    import loraga

    def content(folder: str) -> dict[Path, bytes]:
        return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}

    models = {1: started(seed=1), 2: started(seed=2, r=3)}
    wholes = {}
    for number, model in models.items():
        model.save_pretrained(f"{directory}-{number}")
        wholes[number] = content(f"{directory}-{number}")
    assert wholes[1] != wholes[2]
    last = 0
    for _ in range(rounds):
        processes = []
        for model in models.values():
            process = os.fork()
            if process == 0:
                status = 1
                try:
                    model.save_pretrained(directory)
                    status = 0
                finally:
                    os._exit(status)
            processes.append(process)
        assert [os.waitpid(process, 0)[1] for process in processes] == [0, 0]
        last = next(number for number, whole in wholes.items() if content(directory) == whole)
    assert not list(Path(directory).parent.glob(".*.saving-*"))
    state = adapter_state(loraga.load(base(), directory, is_trainable=True))
    assert_same(state, adapter_state(models[last]))
