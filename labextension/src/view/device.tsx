// One device in two lines: what it is and who uses it; how busy and how full it is. Below, for those who ask, all the rest.
import { JSX } from 'preact';
import { useState } from 'preact/hooks';
import { Device } from '../state';
import { Bar, Spark, Warning } from './bars';
import { pure, useTranslate } from './pure';
import { items } from './records';
import { Translate } from './types';
import { answers, celsius, deviceModel, duration, gib, heat, memory, memoryFraction, percent, speed, watts } from './words';

const LARGE_BYTES = 99.5 * 2 ** 30;

export interface DeviceProps {
  device: Device;
  /** Who uses it for what; empty where it is free. */
  uses: string;
  /** Whether Tab comes to this one; to the others of its machine go the arrow keys. */
  reached: boolean;
}

export const DeviceRow = pure(({ device, uses, reached }: DeviceProps): JSX.Element => {
  const translate = useTranslate();
  const [open, setOpen] = useState(false);
  const { reading, silent_seconds: silent, history, limits, leaving } = device;
  const place = translate('%1 on %2', `${device.kind}:${device.index}`, device.host);
  // what does not answer is not called free
  const free = answers(device) ? translate('free') : '';
  const use = silent ? translate('no news for %1', duration(silent)) : leaving || uses || free;
  const facts = lasting(device, uses, translate);
  return (
    <li class={`kn-device${silent ? ' kn-old' : leaving ? ' kn-leaving' : ''}`} title={facts.join('\n')}>
      <div class="kn-line">
        <button
          type="button"
          class="kn-name kn-more"
          aria-expanded={open}
          tabIndex={reached ? 0 : -1}
          onClick={() => setOpen(!open)}
        >
          <span class="kn-id">{`${device.kind}:${device.index}`}</span> {deviceModel(device, translate)}
        </button>
        <span class={`kn-uses${uses || silent || leaving ? '' : ' kn-free'}`}>{use}</span>
      </div>
      <div class="kn-measures">
        <Spark
          utilisation={history?.utilisation}
          memory={history?.memory}
          label={translate('The last ten minutes of %1', place)}
        />
        <Bar
          kind="use"
          label={translate('Utilisation of %1', place)}
          text={percent(reading?.utilisation)}
          fraction={reading?.utilisation}
        />
        <Bar
          kind="memory"
          label={translate('Memory of %1', place)}
          text={memory(device)}
          fraction={memoryFraction(device)}
          large={(reading?.memory_total_bytes ?? device.memory_bytes) >= LARGE_BYTES}
        />
        <span class="kn-heat">
          <span class="kn-celsius">{celsius(device)}</span> <span class="kn-watts">{watts(device)}</span>
        </span>
      </div>
      {limits && <div class="kn-limits">{translate('lent: %1', limits)}</div>}
      {reading?.note && device.kind !== 'cpu' && (
        <div class="kn-remark">
          {answers(device) ? reading.note : <Warning>{reading.note}</Warning>}
        </div>
      )}
      {open && (
        <ul class="kn-details" aria-label={translate('More of %1', place)}>
          {[...facts, ...passing(device)].map((fact, place) => (
            <li key={place}>{fact}</li>
          ))}
        </ul>
      )}
    </li>
  );
});

/** What stays the same for long: in the title too, which costs much where it changes. */
function lasting(device: Device, uses: string, translate: Translate): string[] {
  const { host, kind, index, name, limits, reading } = device;
  const lent = limits ? translate('lent: %1', limits) : '';
  return [`${host} ${kind}:${index}`, name, speed(device), lent, uses, reading?.note ?? ''].filter(Boolean);
}

/** What is another each second. */
function passing(device: Device): string[] {
  const processes = items(device.reading?.processes).map(
    ({ pid, name, memory_bytes: bytes }) => `${pid} ${name ?? ''}${bytes === undefined ? '' : ` ${gib(bytes)} GiB`}`
  );
  return [device.leaving ?? '', heat(device), ...processes].filter(Boolean);
}
