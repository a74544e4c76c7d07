// Pictures of states that are hard to come by: idle, busy, failing, empty, and two hundred devices. For looking at, and
// for measuring what an update costs; not part of the package.
import { applyPatch } from '../src/patch';
import { Device, NOTHING, Pool, State } from '../src/state';
import { Link, mount } from '../src/view';

const GIB = 2 ** 30;
const NOW = 1764050400;
const ADA = 'Client-ada';
const BOB = 'Client-bob';
const CARDS = ['NVIDIA GeForce RTX 4090', 'NVIDIA GeForce RTX 3060 Laptop GPU', 'NVIDIA A100-SXM4-80GB'];

function history(seed: number, level: number): number[] {
  return Array.from({ length: 60 }, (_, x) => (x < 12 ? -1 : Math.round(100 * Math.abs(Math.sin(x / 7 + seed) * level))));
}

function device(box: number, index: number, utilisation: number): Device {
  const total = [24, 6, 80][(box + index) % 3] * GIB;
  return {
    index,
    kind: 'cuda',
    name: CARDS[(box + index) % 3],
    host: `gpu-box-${box}`,
    machine: `gpu-box-${box}-00aa`,
    memory_bytes: total,
    reading: {
      memory_used_bytes: total * (0.1 + 0.8 * utilisation),
      memory_total_bytes: total,
      utilisation,
      temperature_celsius: 40 + 40 * utilisation,
      power_watts: 60 + 300 * utilisation,
      power_limit_watts: 450
    },
    history: { utilisation: history(box + index, 0.9), memory: history(index, 0.5) }
  };
}

function pool(boxes: number, each: number, busy: number): Pool {
  const devices: Record<string, Device> = {};
  for (let box = 1; box <= boxes; box++) {
    for (let index = 0; index < each; index++) {
      devices[`GPU-${box}-${index}`] = device(box, index, busy * (((box * 7 + index * 3) % 10) / 10));
    }
  }
  const machines = Object.fromEntries(
    Array.from({ length: boxes }, (_, n) => [`gpu-box-${n + 1}-00aa`, { host: `gpu-box-${n + 1}`, cores: 16, utilisation: 0.3 }])
  );
  return {
    snapshot: {
      version: 1,
      id: '9f3c2a7b1d4e',
      pool: 'training.ipynb (812)',
      time: NOW,
      machines,
      devices,
      leases: {},
      queue: {},
      owners: { [ADA]: { label: 'training.ipynb (812)' }, [BOB]: { label: 'bob.ipynb (9)' } },
      cells: {},
      sweeps: {},
      models: {},
      events: [{ time: NOW - 400, kind: 'joined', text: 'gpu-box-1 cuda:0 joined' }],
      alerts: {}
    },
    owners: { [ADA]: { label: 'training.ipynb (812)', pid: 812, host: 'laptop', link: 'live', can_invite: true } }
  };
}

function busy(): State {
  const one = pool(2, 2, 1);
  const lease = { owner: ADA, label: 'training.ipynb (812)', share: 1, running: true, since: NOW - 100 };
  const devices = one.snapshot.devices!;
  devices['GPU-1-0'].limits = devices['GPU-1-1'].limits = '80 % of memory; 22:00-08:00; when idle; at most 250 W';
  devices['GPU-2-0'].limits = 'when idle';
  devices['GPU-2-0'].leaving = 'its owner takes it back: 40 s left';
  Object.assign(one.snapshot, {
    leases: {
      a: { ...lease, kind: 'trial', what: 'sweep lr', devices: ['GPU-1-0'] },
      b: { ...lease, kind: 'model', what: 'model SmolLM2', devices: ['GPU-1-1', 'GPU-2-0'] },
      c: { ...lease, kind: 'session', running: false, owner: BOB, label: 'bob.ipynb (9)', devices: ['GPU-2-1'] }
    },
    queue: { q: { owner: BOB, label: 'bob.ipynb (9)', count: 2, since: NOW - 10, reason: '1st in the queue; 1 of 2 devices free; training.ipynb (812) holds gpu-box-1 cuda:0' } },
    cells: { c0: { owner: ADA, number: 7, text: 'loss = train(model, epochs=30)', ranks: 2, devices: ['GPU-1-0'], since: NOW - 65 } },
    sweeps: {
      s: { owner: ADA, name: 'lr', fn: 'train', state: 'running', counts: { COMPLETE: 23, RUNNING: 2, WAITING: 35, FAILED: 2 }, total: 62, since: NOW - 300, eta_seconds: 402, best: 'accuracy=0.97 with lr=0.01, width=64', trouble: '2 × ValueError: width has to be even' }
    },
    models: {
      m: { owner: ADA, name: 'SmolLM2-135M-Instruct', state: 'running', stages: [{ device: 'GPU-1-1', layers: [0, 12] }, { device: 'GPU-2-0', layers: [12, 30] }], spares: ['GPU-2-1'], tokens_per_second: 20.5, requests: 2 }
    },
    alerts: { i: { kind: 'idle', device: 'GPU-2-1', text: 'gpu-box-2 cuda:1 is held by bob.ipynb (9), and idle for 6 min' } }
  });
  return { version: 1, pools: { p: one } };
}

function failing(): State {
  const one = pool(1, 3, 0.6);
  const [first, second, third] = Object.values(one.snapshot.devices!);
  first.silent_seconds = 12;
  second.reading = { note: 'GPU is lost', temperature_celsius: 40 };
  third.reading = { ...third.reading, memory_used_bytes: third.memory_bytes * 0.99 };
  one.snapshot.alerts = {
    a: { kind: 'silent', text: 'no news from gpu-box-1 cuda:0 for 12 s' },
    b: { kind: 'memory', text: 'gpu-box-1 cuda:2 is nearly out of memory: 99% of it is in use' }
  };
  const two = pool(1, 1, 0.3);
  two.snapshot.pool = 'sweep.ipynb (77)';
  two.owners = { x: { label: 'sweep.ipynb (77)', pid: 77, host: 'laptop', link: 'lost', reason: 'the head of the pool does not answer any more. Open a new one with kn.Pool().' } };
  const three = pool(1, 1, 0.3);
  three.snapshot.pool = 'old.ipynb (5)';
  three.owners = { y: { label: 'old.ipynb (5)', pid: 5, host: 'laptop', link: 'silent', silent_seconds: 12 } };
  return { version: 1, pools: { p: one, q: two, r: three } };
}

function standIns(): State {
  const one = pool(1, 4, 0.2);
  one.snapshot.alerts = {};
  Object.values(one.snapshot.devices!).forEach(each => {
    each.kind = 'cpu';
    each.name = 'AMD EPYC 7B13';
    each.host = 'laptop';
    each.reading = { utilisation: each.reading!.utilisation, memory_used_bytes: 2e8, memory_total_bytes: 6 * GIB };
    each.memory_bytes = 6 * GIB;
  });
  const lease = { owner: ADA, label: 'x', kind: 'session', share: 1, running: false, since: NOW - 200 };
  one.snapshot.leases = { l: { ...lease, devices: ['GPU-1-0'] } };
  return { version: 1, pools: { p: one } };
}

/** All that has a long name, several notebooks of one person, everything at once. */
function crowd(): State {
  const state = busy();
  const [one] = Object.values(state.pools);
  const other = pool(1, 1, 0.5);
  one.owners.second = { label: 'a-notebook-with-quite-a-long-name-for-2026.ipynb (4711)', pid: 4711, host: 'laptop', link: 'silent', silent_seconds: 5 };
  Object.assign(one.snapshot, { pool: 'a-notebook-with-quite-a-long-name-for-2026.ipynb (4711)' });
  one.snapshot.devices!['GPU-1-0'].host = 'ip-10-0-117-203.eu-central-1.compute.internal';
  one.snapshot.devices!['GPU-1-0'].limits = '8.5 GiB of memory; Sat-Sun, Mon-Fri 18:00-08:00; when idle; at most 250 W';
  one.snapshot.devices!['GPU-1-0'].leaving = 'blender (pid 4711) is on cuda:0: 119 s left for what runs there';
  one.snapshot.devices!['GPU-1-0'].reading!.processes = [
    { pid: 4711, name: 'python', memory_bytes: 11 * GIB },
    { pid: 990, name: 'Xorg' }
  ];
  one.snapshot.leases!.z = { owner: ADA, label: 'training.ipynb (812)', kind: 'session', share: 0.5, running: false, since: NOW - 7800, devices: ['GPU-1-0', 'GPU-1-1'] };
  one.snapshot.sweeps!.t = { owner: BOB, name: 'width-and-depth-of-the-network', fn: 'train', state: 'cut off', counts: { COMPLETE: 1200, PRUNED: 431, STOPPED: 3 }, total: 2400, since: NOW - 90000 };
  one.snapshot.models!.n = { owner: BOB, name: 'Qwen3-235B-A22B-Instruct-2507', state: 'ended: the device of its only stage was lost', stages: [], spares: [] };
  for (let n = 0; n < 9; n++) {
    one.snapshot.alerts![`lost/${n}`] = { kind: 'lost', text: `gpu-box-9 cuda:${n} was lost, and with it what ran there` };
  }
  one.snapshot.events = Array.from({ length: 20 }, (_, n) => ({ time: NOW - 4000 + 200 * n, kind: n % 3 ? 'joined' : 'lost', text: `gpu-box-${n % 2} cuda:${n % 4} ${n % 3 ? 'joined' : 'was lost'}` }));
  return { version: 1, pools: { ...state.pools, other } };
}

/** Of another version, or broken: what can be understood is shown. */
function odd(): State {
  const one = pool(1, 2, 0.5);
  Object.assign(one.snapshot, { sweeps: { a: 7, b: { name: 'half', counts: null } }, queue: 'none', alerts: [null], events: [{}, 3], leases: { l: {} }, cells: undefined });
  Object.assign(one.snapshot.devices!['GPU-1-0'], { reading: { utilisation: 'much', processes: 5 }, history: 3 });
  return { version: 1, pools: { p: one, q: { snapshot: { pool: 'future.ipynb' } }, r: null } } as unknown as State;
}

const STATES: Record<string, () => [State, Link]> = {
  empty: () => [NOTHING, 'live'],
  idle: () => [standIns(), 'live'],
  busy: () => [busy(), 'live'],
  failing: () => [failing(), 'live'],
  down: () => [busy(), 'down'],
  crowd: () => [crowd(), 'live'],
  odd: () => [odd(), 'polling'],
  many: () => [{ version: 1, pools: { p: pool(25, 8, 1) } }, 'live']
};

const actions = {
  order: async (_pool: string, _owner: string, verb: string) => {
    await new Promise(resolve => setTimeout(resolve, 50));
    return verb === 'stop_cell' ? { ok: false, text: 'this cell has ended already.' } : { ok: true, text: 'done.' };
  },
  copy: async () => {
    throw new Error('no clipboard');
  },
  insertCell: () => undefined
};

function show(name: string): void {
  const view = mount(document.querySelector('main')!, { actions });
  let [state, link] = STATES[name]();
  view.update(state, link);
  Object.assign(window, {
    /** One second of two hundred devices: every reading changes. Gives the milliseconds of scripting it took. */
    step(n: number): number {
      const devices = Object.fromEntries(
        Object.keys(state.pools.p.snapshot.devices!).map((id, place) => [
          id,
          { reading: { utilisation: ((n * 13 + place * 7) % 100) / 100, memory_used_bytes: (1 + ((n + place) % 5)) * GIB, temperature_celsius: 40 + ((n + place) % 30) } }
        ])
      );
      if (n % 10 === 0) {
        Object.entries(devices).forEach(([id, each]) => {
          const old = state.pools.p.snapshot.devices![id].history!;
          Object.assign(each, { history: { utilisation: [...old.utilisation.slice(1), n % 100], memory: old.memory } });
        });
      }
      const text = JSON.stringify({ pools: { p: { snapshot: { time: NOW + n, devices } } } });
      const started = performance.now();
      state = applyPatch(state, JSON.parse(text));
      view.update(state, link);
      return performance.now() - started;
    },
    unfold() {
      document.querySelectorAll<HTMLElement>('.kn-fold[aria-expanded=false]').forEach(each => each.click());
    }
  });
}

const asked = new URLSearchParams(location.search);
const look = asked.get('look') ?? 'plain';
if (!look.startsWith('plain')) {
  const theme = document.createElement('link');
  Object.assign(theme, { rel: 'stylesheet', href: `${look}.css` });
  document.head.prepend(theme);
  document.body.dataset.jpThemeName = look;
}
show(asked.get('state') ?? 'busy');
