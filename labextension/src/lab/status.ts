// "2 pools · 6 GPUs · 71 %" in the status bar: a button that opens the sidebar, there only while there is a pool.
import { Poll } from '@lumino/polling';
import { ISignal, Signal } from '@lumino/signaling';
import { Widget } from '@lumino/widgets';
import { TranslationBundle } from '@jupyterlab/translation';
import { line, Summary } from './summary';

const POLL_MILLISECONDS = { interval: 10000, most: 60000 };

export class StatusLine extends Widget {
  constructor(
    ask: () => Promise<Summary>,
    open: () => void,
    private readonly words: TranslationBundle
  ) {
    super();
    this.addClass('jp-mod-highlighted');
    this.button.type = 'button';
    this.button.className = 'kn-status jp-StatusBar-TextItem';
    this.button.title = words.__('Show the GPU pools');
    this.button.addEventListener('click', open);
    this.node.append(this.button);
    this.poll = new Poll({
      auto: false,
      name: 'kalavai_nb:summary',
      standby: 'when-hidden',
      frequency: { interval: POLL_MILLISECONDS.interval, backoff: true, max: POLL_MILLISECONDS.most },
      factory: () => ask().then(this.take, this.fail)
    });
    void this.poll.start();
  }

  /** Whether there is a pool to tell of. */
  get active(): boolean {
    return this.pools > 0;
  }

  get activeChanged(): ISignal<this, void> {
    return this.activeSignal;
  }

  override dispose(): void {
    if (!this.isDisposed) {
      this.poll.dispose();
      Signal.clearData(this);
      super.dispose();
    }
  }

  private readonly take = (summary: Summary): void => {
    const text = line(summary, this.words);
    if (this.button.textContent !== text) {
      this.button.textContent = text;
    }
    this.count(summary.pools);
  };

  /** An old number would be a lie; the error goes on to the poll, which then waits longer. */
  private readonly fail = (error: unknown): never => {
    this.count(0);
    throw error;
  };

  private count(pools: number): void {
    const changed = pools > 0 !== this.active;
    this.pools = pools;
    if (changed) {
      this.activeSignal.emit();
    }
  }

  private readonly button = document.createElement('button');
  private readonly activeSignal = new Signal<this, void>(this);
  private readonly poll: Poll;
  private pools = 0;
}
