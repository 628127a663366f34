"""Metrics of a running server in the form that Prometheus reads."""
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import prometheus_client
from prometheus_client.parser import text_string_to_metric_families

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
HTTP_METHODS = ('GET', 'HEAD', 'POST', 'DELETE', 'PUT', 'PATCH', 'OPTIONS')


class Metrics:
  """The metrics of one server, in a registry of their own.

  interests: counter of interests found, by source. catalog_reloads: counter of reloads, by outcome.
  impressions_lost: counter of answers that could not be written down.
  """

  def __init__(self):
    self.registry = prometheus_client.CollectorRegistry()
    prometheus_client.ProcessCollector(registry=self.registry)
    prometheus_client.GCCollector(registry=self.registry)
    self._requests = prometheus_client.Counter(
        'recjax_requests', 'Requests answered', ('route', 'method', 'status'),
        registry=self.registry)
    self._of_requests: dict[tuple[str, str, int], tuple[Any, Any]] = {}
    self._request_seconds = prometheus_client.Histogram(
        'recjax_request_seconds', "From a request's head to its answer's end", ('route',),
        buckets=SECONDS_BUCKETS, registry=self.registry)
    self._batch_size = prometheus_client.Histogram(
        'recjax_batch_size', 'Requests answered together', ('kind', 'model'),
        buckets=SIZE_BUCKETS, registry=self.registry)
    self._batch_seconds = prometheus_client.Histogram(
        'recjax_batch_seconds', 'Time a batch took', ('kind', 'model'), buckets=SECONDS_BUCKETS,
        registry=self.registry)
    self._prompt_tokens = prometheus_client.Counter(
        'recjax_prompt_tokens', 'Tokens of prompts: found in the memory of prefixes, or read',
        ('model', 'source'), registry=self.registry)
    self._prefix_bytes = prometheus_client.Gauge(
        'recjax_prefix_memory_bytes', 'Bytes that a language model keeps of prompts', ('model',),
        registry=self.registry)
    self.interests = prometheus_client.Counter(
        'recjax_interests', 'Interests found, by who found them', ('source',),
        registry=self.registry)
    self.catalog_reloads = prometheus_client.Counter(
        'recjax_catalog_reloads', 'Catalogs read anew', ('outcome',), registry=self.registry)
    self.impressions_lost = prometheus_client.Counter(
        'recjax_impressions_lost', 'Answers that could not be written to the database of events',
        registry=self.registry)
    self._events = prometheus_client.Counter(
        'recjax_events', 'Events of users that came, those sent again too', ('type',),
        registry=self.registry)
    self._event_write_seconds = prometheus_client.Histogram(
        'recjax_event_write_seconds', 'Time a transaction of events took', buckets=SECONDS_BUCKETS,
        registry=self.registry)

  def observe_request(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
    """Counts one request. Paths that no route has are one label, so that labels stay few.

    scope: the ASGI scope after routing. status: of the answer. seconds: from head to end.
    """
    route = getattr(scope.get('route'), 'path', 'none')
    method = scope['method'] if scope['method'] in HTTP_METHODS else 'other'
    if (route, method, status) not in self._of_requests:  # finding them by labels takes as long
      self._of_requests[route, method, status] = (
          self._requests.labels(route, method, str(status)), self._request_seconds.labels(route))
    count, histogram = self._of_requests[route, method, status]
    count.inc()
    histogram.observe(seconds)

  def observe_batch(self, kind: str, model: str, size: int, seconds: float) -> None:
    """Counts one batch. kind: 'recommend' or 'chat'. model: its name. size: requests in it.
    seconds: that it took."""
    self._batch_size.labels(kind, model).observe(size)
    self._batch_seconds.labels(kind, model).observe(seconds)

  def observe_prompt(self, model: str, found: int, read: int) -> None:
    """Counts one prompt. model: its name. found: tokens that were kept of earlier prompts. read:
    the others."""
    self._prompt_tokens.labels(model, 'memory').inc(found)
    self._prompt_tokens.labels(model, 'read').inc(read)

  def watch_prefix_bytes(self, model: str, value: Callable[[], float]) -> None:
    """Shows what a model keeps of prompts. model: its name. value: called for the bytes."""
    self._prefix_bytes.labels(model).set_function(value)

  def observe_event_batch(self, size: int, seconds: float) -> None:
    """Counts one transaction of events. size: requests in it. seconds: that it took."""
    self._batch_size.labels('events', '').observe(size)
    self._event_write_seconds.observe(seconds)

  def count_events(self, types: Iterable[str]) -> None:
    """Counts events that came. types: one a piece."""
    for kind in types:
      self._events.labels(kind).inc()

  def add_gauge(self, name: str, description: str, value: Callable[[], float]) -> None:
    """Adds a figure that is computed when somebody asks.

    name: of the metric. description: a line for readers. value: called for the figure.
    """
    prometheus_client.Gauge(name, description, registry=self.registry).set_function(value)

  def render(self) -> bytes:
    """Returns all metrics in Prometheus' text format."""
    return prometheus_client.generate_latest(self.registry)


def merge_metrics(texts: Mapping[int, bytes]) -> bytes:
  """Returns the metrics of several workers as one text, in which a label `worker` tells whose each
  is. texts: of `Metrics.render`, by the worker's number."""
  families: dict[str, Any] = {}
  for number, text in texts.items():
    for family in text_string_to_metric_families(text.decode()):
      samples = [sample._replace(labels={**sample.labels, 'worker': str(number)})
                 for sample in family.samples]
      if family.name in families:
        families[family.name].samples += samples
      else:
        family.samples, families[family.name] = samples, family

  class Collected(prometheus_client.registry.Collector):
    def collect(self) -> Iterable[Any]:
      return families.values()
  registry = prometheus_client.CollectorRegistry()
  registry.register(Collected())
  return prometheus_client.generate_latest(registry)
