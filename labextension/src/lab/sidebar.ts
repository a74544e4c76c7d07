// The sidebar: the shared view, fed only while it is shown and the tab of the browser is in front.
import { Message } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';
import { Actions, mount, Translate, View } from '../view';
import { poolIcon } from './icon';
import { News, Reason, Source, Stream } from './stream';

export const SIDEBAR_ID = 'kalavai_nb-sidebar';

export class Sidebar extends Widget {
  constructor(source: Source, actions: Actions, private readonly translate: Translate) {
    super();
    this.id = SIDEBAR_ID;
    this.title.icon = poolIcon;
    this.title.caption = translate('GPU pools');
    this.addClass('kn-sidebar');
    this.notice.className = 'kn-notice';
    this.notice.setAttribute('role', 'alert');
    this.notice.hidden = true;
    const place = document.createElement('div');
    this.node.append(this.notice, place);
    this.view = mount(place, { actions, translate, label: translate('GPU pools') });
    this.stream = new Stream(source, news => this.take(news));
    document.addEventListener('visibilitychange', this.watch);
  }

  /** Seconds that numbers stand still; what the link does is shown at once all the same. */
  pauseSeconds = 0;

  override dispose(): void {
    if (!this.isDisposed) {
      document.removeEventListener('visibilitychange', this.watch);
      clearTimeout(this.later);
      this.stream.dispose();
      this.view.dispose();
      super.dispose();
    }
  }

  protected override onAfterAttach(_message: Message): void {
    this.watch();
  }

  protected override onAfterShow(_message: Message): void {
    this.watch();
  }

  protected override onBeforeHide(_message: Message): void {
    this.stream.stop();
  }

  protected override onBeforeDetach(_message: Message): void {
    this.stream.stop();
  }

  protected override onActivateRequest(_message: Message): void {
    this.node.tabIndex = -1;
    this.node.focus();
  }

  private readonly watch = (): void => {
    if (this.isAttached && this.isVisible && document.visibilityState !== 'hidden') {
      this.stream.start();
    } else {
      this.stream.stop();
    }
  };

  private take(news: News): void {
    const changed = news.link !== this.news?.link || news.trouble !== this.news?.trouble;
    this.news = news;
    if (changed || this.pauseSeconds === 0) {
      this.draw();
    } else if (this.later === undefined) {
      const wait = this.drawnAt + 1000 * this.pauseSeconds - performance.now();
      this.later = setTimeout(() => this.draw(), Math.max(0, wait));
    }
  }

  private draw(): void {
    clearTimeout(this.later);
    this.later = undefined;
    this.drawnAt = performance.now();
    if (this.news) {
      const { state, link, trouble } = this.news;
      this.view.update(state, link, this.said(trouble));
      this.explain(trouble);
    }
  }

  /** The server is up where it has no extension of ours: then the view must not call it down. */
  private said(trouble: Reason | undefined): string | undefined {
    switch (trouble) {
      case 'missing':
        return this.translate('not installed');
      case 'refused':
        return this.translate('not allowed');
      default:
        return undefined;
    }
  }

  private explain(trouble: Reason | undefined): void {
    const text = this.sentence(trouble);
    if (this.notice.textContent !== text) {
      this.notice.textContent = text; // only then: a screen reader says it again each time
    }
    this.notice.hidden = text === '';
  }

  private sentence(trouble: Reason | undefined): string {
    switch (trouble) {
      case 'missing':
        return this.translate(
          'kalavai_nb is not installed in the environment of the Jupyter server, or its server extension is off. ' +
            'Install it there (pip install kalavai-nb), see that "jupyter server extension list" names it, and start the server again.'
        );
      case 'refused':
        return this.translate('The Jupyter server does not let you see pools. Log in again by reloading this page.');
      default:
        return ''; // the view says by itself that the server is down
    }
  }

  private readonly notice = document.createElement('p');
  private readonly view: View;
  private readonly stream: Stream;
  private news: News | undefined;
  private later: ReturnType<typeof setTimeout> | undefined;
  private drawnAt = 0;
}
