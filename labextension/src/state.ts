// The form of what is seen: kalavai_nb/snapshot.py makes it, the server's extension passes it on. What is n/a is absent.

export interface Process {
  pid: number;
  name?: string;
  memory_bytes?: number;
}

export interface Reading {
  memory_used_bytes?: number;
  memory_total_bytes?: number;
  /** From 0 to 1. */
  utilisation?: number;
  temperature_celsius?: number;
  power_watts?: number;
  power_limit_watts?: number;
  processes?: Process[];
  note?: string;
}

/** Ten minutes in bins of ten seconds, oldest first: whole percents, -1 where there is none. */
export interface History {
  utilisation: number[];
  memory: number[];
}

export interface Device {
  index: number;
  kind: string;
  name: string;
  host: string;
  machine: string;
  memory_bytes: number;
  /** Operations per second of a matrix product, measured when it joined. */
  flops?: number;
  /** What its owner lends of it, where that is not all. */
  limits?: string;
  /** That its owner takes it back, and how long that takes. */
  leaving?: string;
  reading?: Reading;
  silent_seconds?: number;
  history?: History;
}

export interface Machine {
  host: string;
  cores?: number;
  memory_bytes?: number;
  memory_used_bytes?: number;
  utilisation?: number;
  /** The ways to other machines, in words. */
  links?: string;
}

export interface Lease {
  owner: string;
  label: string;
  kind: string;
  devices: string[];
  share: number;
  running: boolean;
  since: number;
  what?: string;
}

export interface Waiting {
  owner: string;
  label: string;
  count: number;
  since: number;
  reason: string;
}

export interface Cell {
  owner: string;
  number: number;
  text?: string;
  ranks: number;
  devices: string[];
  since: number;
}

export interface Sweep {
  owner: string;
  name: string;
  fn: string;
  state: string;
  counts: Record<string, number>;
  total: number;
  since: number;
  best?: string;
  eta_seconds?: number;
  trouble?: string;
}

export interface Model {
  owner: string;
  name: string;
  state: string;
  stages: { device: string; layers: [number, number] }[];
  spares: string[];
  tokens_per_second?: number;
  requests?: number;
}

export interface PoolEvent {
  time: number;
  kind: string;
  text: string;
}

export interface Alert {
  kind: string;
  text: string;
  device?: string;
}

export interface Snapshot {
  version: number;
  id: string;
  pool: string;
  time: number;
  machines: Record<string, Machine>;
  devices: Record<string, Device>;
  leases: Record<string, Lease>;
  queue: Record<string, Waiting>;
  owners: Record<string, { label: string }>;
  cells: Record<string, Cell>;
  sweeps: Record<string, Sweep>;
  models: Record<string, Model>;
  events: PoolEvent[];
  alerts: Record<string, Alert>;
}

/** A notebook or script of this very user. `silent`: it lives and says nothing; `ended`: its process is gone. */
export interface Owner {
  label: string;
  pid: number;
  host: string;
  link: 'live' | 'lost' | 'silent' | 'ended';
  reason?: string;
  silent_seconds?: number;
  can_invite?: boolean;
}

export interface Pool {
  /** Any part of it may be missing, where another version wrote it. */
  snapshot: Partial<Snapshot>;
  /** Those of this user: what is theirs has buttons. */
  owners: Record<string, Owner>;
}

export interface State {
  version: number;
  pools: Record<string, Pool>;
}

export const NOTHING: State = { version: 1, pools: {} };
