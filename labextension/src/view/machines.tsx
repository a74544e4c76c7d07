// The machines of a pool, each with its devices; folded where there are many.
import { JSX } from 'preact';
import { useMemo, useState } from 'preact/hooks';
import { Device, Lease, Machine, Owner, Snapshot } from '../state';
import { DeviceRow } from './device';
import { Guard, useTranslate } from './pure';
import { entries } from './records';
import { Translate } from './types';
import { answers, mean, percent, use } from './words';

const FOLDED_FROM = 9;

interface Group {
  id: string;
  host: string;
  devices: [string, Device][];
}

export interface MachinesProps {
  snapshot: Partial<Snapshot>;
  owners: Record<string, Owner>;
}

export function Machines({ snapshot, owners }: MachinesProps): JSX.Element {
  const translate = useTranslate();
  // by hand, and kept while the numbers change
  const [turned, setTurned] = useState<Record<string, boolean>>({});
  const groups = grouped(snapshot.devices);
  const uses = usesOf(snapshot.leases, snapshot.time ?? 0, owners, translate);
  const few = groups.length < FOLDED_FROM;
  return (
    <ul class={`kn-machines${groups.length > 1 ? ' kn-several' : ''}`} aria-label={translate('Machines')}>
      {groups.map(group => (
        <Guard key={group.id}>
          <MachineRow
            group={group}
            machine={snapshot.machines?.[group.id]}
            open={turned[group.id] ?? few}
            turn={() => setTurned(before => ({ ...before, [group.id]: !(before[group.id] ?? few) }))}
            uses={uses}
          />
        </Guard>
      ))}
    </ul>
  );
}

interface RowProps {
  group: Group;
  machine: Machine | undefined;
  open: boolean;
  turn: () => void;
  uses: Record<string, string>;
}

function MachineRow({ group, machine, open, turn, uses }: RowProps): JSX.Element {
  const translate = useTranslate();
  const [reached, setReached] = useState(0);
  const { host, devices } = group;
  const busy = mean(devices.map(([, device]) => (device.silent_seconds ? undefined : device.reading?.utilisation)));
  const free = devices.filter(([id, device]) => !uses[id] && !device.leaving && answers(device)).length;
  const title = [
    host,
    translate('%1 of %2 devices are free', free, devices.length),
    machine?.cores ? translate('%1 cores, busy %2', machine.cores, percent(machine.utilisation)) : '',
    machine?.links ? translate('ways to others: %1', machine.links) : ''
  ];
  return (
    <li class="kn-machine">
      <button type="button" class="kn-fold" aria-expanded={open} onClick={turn} title={title.filter(Boolean).join('\n')}>
        <span class="kn-name">{host}</span>
        <span class="kn-muted">{translate('%1/%2 free', free, devices.length)}</span>
        <span class="kn-bar kn-mean">
          <span class="kn-fill kn-mean-fill" style={{ width: `${Math.round(100 * (busy ?? 0))}%` }} />
        </span>
        <span class="kn-number">{percent(busy)}</span>
      </button>
      {open && (
        <ul
          class="kn-devices"
          aria-label={translate('Devices of %1', host)}
          onKeyDown={walk}
          onFocusCapture={event => setReached(Math.max(0, stops(event.currentTarget).indexOf(event.target as HTMLElement)))}
        >
          {devices.map(([id, device], place) => (
            <DeviceRow
              key={id}
              device={device}
              uses={uses[id] ?? ''}
              reached={place === Math.min(reached, devices.length - 1)}
            />
          ))}
        </ul>
      )}
    </li>
  );
}

/** One stop for Tab in each list; within it, arrows go from device to device. */
function walk(event: JSX.TargetedKeyboardEvent<HTMLElement>): void {
  const all = stops(event.currentTarget);
  const here = all.indexOf(event.target as HTMLElement);
  const there = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: all.length - 1 }[event.key];
  if (here >= 0 && there !== undefined) {
    event.preventDefault();
    // JupyterLab moves between cells with the same keys
    event.stopPropagation();
    all[Math.min(all.length - 1, Math.max(0, there))].focus();
  }
}

function stops(list: HTMLElement): HTMLElement[] {
  return [...list.querySelectorAll<HTMLElement>('.kn-more')];
}

/** By machine, in the order of hosts and indices. */
function grouped(devices: Record<string, Device> | undefined): Group[] {
  return useMemo(() => {
    const groups = new Map<string, Group>();
    for (const [id, device] of entries(devices)) {
      const group = groups.get(device.machine) ?? { id: device.machine, host: device.host ?? '', devices: [] };
      group.devices.push([id, device]);
      groups.set(device.machine, group);
    }
    const sorted = [...groups.values()].sort((a, b) => compare(a.host, b.host) || compare(a.id, b.id));
    sorted.forEach(group => group.devices.sort(([a, one], [b, two]) => one.index - two.index || compare(a, b)));
    return sorted;
  }, [devices]);
}

// much faster than localeCompare, which looks for a language each time
const { compare } = new Intl.Collator(undefined, { numeric: true });

/** What each device is used for, by its id. */
function usesOf(
  leases: Record<string, Lease> | undefined,
  now: number,
  owners: Record<string, Owner>,
  translate: Translate
): Record<string, string> {
  const found: Record<string, string> = {};
  for (const [, lease] of entries(leases)) {
    const text = use(lease, now, owners, translate);
    for (const device of lease.devices ?? []) {
      found[device] = found[device] ? `${found[device]}; ${text}` : text;
    }
  }
  return found;
}
