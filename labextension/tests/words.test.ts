// Numbers as people read them, and what is said of what is not known or not true any more.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { area, path } from '../src/view/bars';
import type { Device, Lease, Owner, Pool, State } from '../src/state';
import {
  answers,
  deviceModel,
  duration,
  gib,
  heat,
  honesty,
  isLive,
  mean,
  memory,
  memoryFraction,
  percent,
  speed,
  totals,
  untranslated,
  use,
  who
} from '../src/view/words';

const GIB = 2 ** 30;

function device(changes: Partial<Device> = {}): Device {
  const usual = { index: 0, kind: 'cuda', name: 'NVIDIA GeForce RTX 4090', host: 'box', machine: 'box-1', memory_bytes: 24 * GIB };
  return { ...usual, ...changes };
}

function owner(changes: Partial<Owner> = {}): Owner {
  return { label: 'a.ipynb (1)', pid: 1, host: 'laptop', link: 'live', ...changes };
}

function pool(devices: Record<string, Device>, owners: Record<string, Owner> = { me: owner() }): Pool {
  return { snapshot: { devices }, owners };
}

function state(...pools: Pool[]): State {
  return { version: 1, pools: Object.fromEntries(pools.map((each, place) => [String(place), each])) };
}

test('speeds are told in few digits', () => {
  assert.equal(speed(device({})), '');
  assert.equal(speed(device({ flops: 9.5e10 })), '95 GFLOP/s');
  assert.equal(speed(device({ flops: 2.14e12 })), '2.1 TFLOP/s');
});

test('what is not known is n/a, and zero is not that', () => {
  assert.deepEqual([undefined, 0, 0.004, 0.705, 1].map(percent), ['n/a', '0 %', '0 %', '71 %', '100 %']);
  assert.equal(memory(device()), 'n/a/24 GiB');
  assert.equal(memoryFraction(device()), undefined);
  assert.equal(memoryFraction(device({ reading: { memory_used_bytes: 0, memory_total_bytes: GIB } })), 0);
  assert.equal(memoryFraction(device({ reading: { memory_used_bytes: GIB, memory_total_bytes: 0 } })), undefined);
  assert.equal(heat(device()), '');
  assert.equal(heat(device({ reading: { temperature_celsius: 0, power_watts: 0 } })), '0 °C · 0 W');
  assert.equal(heat(device({ reading: { temperature_celsius: 65.6, power_watts: 287.5, power_limit_watts: 450 } })), '66 °C · 288/450 W');
});

test('memory in GiB, with one digit only where it tells something', () => {
  assert.deepEqual([0, 0.05, 9.94, 9.95, 79.4].map(value => gib(value * GIB)), ['0.0', '0.1', '9.9', '10', '79']);
  assert.equal(memory(device({ reading: { memory_used_bytes: 9.5 * GIB, memory_total_bytes: 23.99 * GIB } })), '9.5/24 GiB');
  assert.equal(memory(device({ memory_bytes: 5.6 * GIB })), 'n/a/5.6 GiB');
});

test('durations are as exact as people need them', () => {
  const wanted = ['0 s', '0 s', '119 s', '2 min', '59 min', '1 h 0 min', '2 h 5 min'];
  assert.deepEqual([-3, 0.4, 119, 120, 3540, 3600, 7500].map(duration), wanted);
});

test('a device is called what its maker calls it, without what is known or stands beside it', () => {
  const model = (name: string, kind = 'cuda') => deviceModel(device({ name, kind }), untranslated);
  assert.equal(model('NVIDIA GeForce RTX 4090'), 'RTX 4090');
  assert.equal(model('NVIDIA GeForce RTX 3060 Laptop GPU'), 'RTX 3060 Laptop');
  assert.equal(model('NVIDIA A100-SXM4-80GB'), 'A100-SXM4');
  assert.equal(model('NVIDIA A100 80GB PCIe'), 'A100 PCIe');
  assert.equal(model('NVIDIA H100 80GB HBM3'), 'H100');
  assert.equal(model('NVIDIA A100 MIG 1g.10gb'), 'A100 MIG 1g.10gb');
  assert.equal(model('AMD Instinct MI300X', 'rocm'), 'Instinct MI300X');
  assert.equal(model('AMD EPYC 7B13', 'cpu'), 'CPU stand-in');
});

test('what says nothing is not free for use', () => {
  assert.ok(answers(device()));
  assert.ok(answers(device({ reading: { note: 'unified memory', utilisation: 0 } })));
  assert.ok(!answers(device({ reading: { note: 'GPU is lost', temperature_celsius: 40 } })));
  assert.ok(!answers(device({ silent_seconds: 3, reading: { utilisation: 0 } })));
});

test('who it is: you, you with a name where several notebooks are yours, others by theirs', () => {
  const one = { me: owner() };
  const two = { me: owner(), too: owner({ label: 'b.ipynb (2)' }) };
  assert.equal(who('me', 'x', one, untranslated), 'you');
  assert.equal(who('too', 'x', two, untranslated), 'you (b.ipynb (2))');
  assert.equal(who('bob', 'bob.ipynb (9)', two, untranslated), 'bob.ipynb (9)');
  assert.equal(who('gone', '', two, untranslated), 'somebody who left');
});

test('what a lease is for', () => {
  const lease: Lease = { owner: 'bob', label: 'bob', kind: 'session', devices: [], share: 1, running: false, since: 10 };
  assert.equal(use(lease, 69, {}, untranslated), 'bob: session, idle');
  assert.equal(use(lease, 95, {}, untranslated), 'bob: session, idle 1 min');
  assert.equal(use(lease, 7510, {}, untranslated), 'bob: session, idle 2 h 5 min');
  assert.equal(use({ ...lease, running: true, what: 'sweep lr' }, 70, {}, untranslated), 'bob: sweep lr');
  assert.equal(use({ ...lease, running: true, share: 0.5 }, 70, {}, untranslated), 'bob: session 50 %');
});

test('totals have each device once, and what is silent says nothing', () => {
  const busy = device({ reading: { utilisation: 1 } });
  const idle = device({ reading: { utilisation: 0 }, machine: 'box-2' });
  const silent = device({ reading: { utilisation: 0 }, silent_seconds: 5, machine: 'box-3' });
  // the same id is another device on another machine
  assert.deepEqual(totals(state(pool({ a: busy }), pool({ a: busy }))), { pools: 2, devices: 1, utilisation: 1 });
  assert.deepEqual(totals(state(pool({ a: busy }), pool({ a: idle }))), { pools: 2, devices: 2, utilisation: 0.5 });
  assert.deepEqual(totals(state(pool({ a: busy, b: silent }))), { pools: 1, devices: 2, utilisation: 1 });
  assert.deepEqual(totals(state(pool({ a: silent }))), { pools: 1, devices: 1, utilisation: undefined });
  // what one pool knows of it, another need not
  assert.deepEqual(totals(state(pool({ a: busy }), pool({ a: device() }))).utilisation, 1);
  assert.deepEqual(totals(state({ snapshot: {}, owners: {} })), { pools: 1, devices: 0, utilisation: undefined });
  assert.equal(mean([]), undefined);
});

test('what is wrong is said of each notebook; nothing where all is well', () => {
  const wrong = pool({}, {
    a: owner(),
    b: owner({ link: 'silent', silent_seconds: 12, label: 'b' }),
    c: owner({ link: 'lost', reason: 'it does not answer.', label: 'c' }),
    d: owner({ link: 'ended', label: 'd' })
  });
  assert.deepEqual(honesty(pool({}), untranslated), []);
  assert.deepEqual(honesty(wrong, untranslated), [
    { key: 'b', text: 'No news for 12 s from b' },
    { key: 'c', text: 'Head lost, says c: it does not answer.' },
    { key: 'd', text: 'd has ended: its process is gone' }
  ]);
  assert.ok(isLive(wrong), 'one that lives is enough');
  assert.ok(!isLive(pool({}, { d: owner({ link: 'ended' }) })));
});

test('a line of history has gaps where nothing was known', () => {
  assert.equal(path(undefined), '');
  assert.equal(path([-1, -1]), '');
  assert.equal(path([-1, 0, 100, -1, 50, 200]), 'M1 19.0h0L2 1.0M4 10.0h0L5 1.0');
});

test('what lies under a line ends where the line does', () => {
  assert.equal(area(path(undefined)), '');
  assert.equal(area('M1 19.0h0L2 1.0M4 10.0h0L5 1.0'), 'M1 19.0h0L2 1.0L2 20L1 20ZM4 10.0h0L5 1.0L5 20L4 20Z');
});
