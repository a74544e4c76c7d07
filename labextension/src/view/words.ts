// What is said, and how numbers look: n/a is a word like any other.
import { Device, Lease, Owner, Pool, State } from '../state';
import { entries } from './records';
import { Translate } from './types';

export const untranslated: Translate = (text, ...values) =>
  text.replace(/%(\d)/g, (_, number) => String(values[Number(number) - 1]));

export function percent(fraction: number | undefined): string {
  return Number.isFinite(fraction) ? `${Math.round(100 * fraction!)} %` : 'n/a';
}

export function gib(bytes: number): string {
  const value = bytes / 2 ** 30;
  return value < 9.95 ? value.toFixed(1) : value.toFixed(0);
}

/** Cards have whole numbers of GiB, or nearly. */
function total(bytes: number): string {
  const value = bytes / 2 ** 30;
  return Math.abs(value - Math.round(value)) < 0.05 ? value.toFixed(0) : gib(bytes);
}

/** A fact that is not broken into two lines. */
export function whole(text: string): string {
  return text.replace(/ /g, '\u00a0');
}

/** "9.5/24 GiB"; what is used is n/a where the device does not tell it. */
export function memory(device: Device): string {
  const { reading } = device;
  const used = reading?.memory_used_bytes;
  return `${used === undefined ? 'n/a' : gib(used)}/${total(reading?.memory_total_bytes ?? device.memory_bytes)} GiB`;
}

export function memoryFraction(device: Device): number | undefined {
  const { memory_used_bytes: used, memory_total_bytes: all } = device.reading ?? {};
  return used === undefined || !all ? undefined : Math.min(1, used / all);
}

/** "66 °C", or nothing where it is not known. */
export function celsius(device: Device): string {
  const value = device.reading?.temperature_celsius;
  return value === undefined ? '' : `${value.toFixed(0)} °C`;
}

/** "2.1 TFLOP/s", as it was measured when it joined. */
export function speed({ flops }: Device): string {
  const [value, unit] = (flops ?? 0) >= 1e12 ? [(flops ?? 0) / 1e12, 'TFLOP/s'] : [(flops ?? 0) / 1e9, 'GFLOP/s'];
  return flops ? `${value < 9.95 ? value.toFixed(1) : value.toFixed(0)} ${unit}` : '';
}

/** "288/450 W", as far as it is known. */
export function watts(device: Device): string {
  const { power_watts: power, power_limit_watts: limit } = device.reading ?? {};
  return power === undefined ? '' : `${power.toFixed(0)}${limit === undefined ? '' : `/${limit.toFixed(0)}`} W`;
}

/** "66 °C · 288/450 W", as far as it is known. */
export function heat(device: Device): string {
  return [celsius(device), watts(device)].filter(Boolean).join(' · ');
}

/** "8 s", "3 min", "2 h 5 min". */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 120) {
    return `${whole} s`;
  }
  const minutes = Math.round(whole / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** By the minute, for what is shown for long: "1 min", "2 h 5 min". */
export function minutes(seconds: number): string {
  const whole = Math.round(seconds / 60);
  return whole < 60 ? `${whole} min` : duration(60 * whole);
}

/** Whether it says anything at all: a GPU that is lost has a name, a temperature at best, and no numbers. */
export function answers({ reading, silent_seconds: silent }: Device): boolean {
  const mute = reading?.note && reading.utilisation === undefined && reading.memory_used_bytes === undefined;
  return !silent && !mute;
}

// its maker, its memory (which stands beside its bar) and that it is a GPU: known, and long
const KNOWN = /^(NVIDIA GeForce |NVIDIA |AMD Radeon |AMD )|[- ]\d+ ?GB\b( HBM\d\w*)?| GPU$/g;

/** What kind of device it is, short enough for a narrow sidebar: "RTX 3060 Laptop", "A100-SXM4". */
export function deviceModel(device: Device, translate: Translate): string {
  return device.kind === 'cpu' ? translate('CPU stand-in') : (device.name ?? '').replace(KNOWN, '');
}

/** Who is meant: "you", with the name of the notebook where several are yours. */
export function who(id: string, label: string, owners: Record<string, Owner>, translate: Translate): string {
  if (!(id in owners)) {
    return label || translate('somebody who left');
  }
  return Object.keys(owners).length > 1 ? translate('you (%1)', owners[id].label) : translate('you');
}

/** What a lease is for, in a few words. */
export function use(lease: Lease, now: number, owners: Record<string, Owner>, translate: Translate): string {
  const holder = who(lease.owner, lease.label, owners, translate);
  const what = lease.what || translate(lease.kind ?? '');
  const share = lease.share < 1 ? ` ${percent(lease.share)}` : '';
  if (lease.running) {
    return `${holder}: ${what}${share}`;
  }
  // by the minute: a text that changes each second is a restless one
  const idle = now - lease.since;
  return idle < 60 ? translate('%1: %2, idle', holder, what) : translate('%1: %2, idle %3', holder, what, minutes(idle));
}

export interface Totals {
  pools: number;
  devices: number;
  utilisation?: number;
}

/** Each device once, in however many pools it is; what has gone silent says nothing about utilisation. */
export function totals(state: State): Totals {
  const seen = new Map<string, number | undefined>();
  const pools = entries(state.pools);
  for (const [, pool] of pools) {
    // of a pool that nobody vouches for, the readings are not of now
    const live = isLive(pool);
    for (const [id, device] of entries(pool.snapshot?.devices)) {
      const known = device.silent_seconds || !live ? undefined : device.reading?.utilisation;
      seen.set(`${device.machine}/${id}`, known ?? seen.get(`${device.machine}/${id}`));
    }
  }
  return { pools: pools.length, devices: seen.size, utilisation: mean([...seen.values()]) };
}

export function mean(values: (number | undefined)[]): number | undefined {
  const known = values.filter((value): value is number => Number.isFinite(value));
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : undefined;
}

/** What is wrong between us and the notebooks of a pool; empty where all is well. */
export function honesty(pool: Pool, translate: Translate): { key: string; text: string }[] {
  return entries(pool.owners).flatMap(([key, owner]) => {
    const text = plight(owner, translate);
    return text ? [{ key, text }] : [];
  });
}

function plight(owner: Owner, translate: Translate): string {
  switch (owner.link) {
    case 'lost':
      return translate('Head lost, says %1: %2', owner.label, owner.reason ?? '');
    case 'silent':
      return translate('No news for %1 from %2', duration(owner.silent_seconds ?? 0), owner.label);
    case 'ended':
      return translate('%1 has ended: its process is gone', owner.label);
    default:
      return '';
  }
}

/** Whether anybody still says what the pool is like now. */
export function isLive(pool: Pool): boolean {
  return entries(pool.owners).some(([, owner]) => owner.link === 'live');
}
