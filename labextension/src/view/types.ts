// What whoever shows the view gives to it.
import { State } from '../state';

export type Verb = 'stop_sweep' | 'stop_cell' | 'close_model' | 'release' | 'invite';

export interface Answer {
  ok: boolean;
  text: string;
}

export interface Actions {
  order(pool: string, owner: string, verb: Verb, target: string): Promise<Answer>;
  copy(text: string): Promise<void>;
  /** Absent where there is no notebook to insert into. */
  insertCell?(source: string): void;
}

export type Link = 'connecting' | 'live' | 'polling' | 'down';

/** '%1 of %2' with its values; in the language of the person. */
export interface Translate {
  (text: string, ...values: unknown[]): string;
}

export interface ViewOptions {
  actions: Actions;
  translate?: Translate;
  label?: string;
  /** "sweep": one sweep alone, without a head line and without what can be done with a pool. */
  part?: string;
}

export interface View {
  /** `said` is said of the link in place of its usual word. */
  update(state: State, link: Link, said?: string): void;
  dispose(): void;
}
