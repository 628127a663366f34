"""Figures of a running server, as Prometheus reads them."""
import prometheus_client as prometheus

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Counters:
  """One server's figures, in a registry of their own."""

  def __init__(self):
    self.registry = prometheus.CollectorRegistry()
    prometheus.ProcessCollector(registry=self.registry)
    prometheus.GCCollector(registry=self.registry)
    make = dict(registry=self.registry)
    self.requests = prometheus.Counter('recjax_requests', 'Requests answered',
                                       ('route', 'method', 'status'), **make)
    self.seconds = prometheus.Histogram('recjax_request_seconds', 'From a request\'s head to its '
                                        'answer\'s end', ('route',), buckets=SECONDS, **make)
    self.batches = prometheus.Histogram('recjax_batch_size', 'Requests answered together',
                                        ('kind', 'model'), buckets=(1, 2, 4, 8, 16, 32, 64), **make)
    self.busy = prometheus.Histogram('recjax_batch_seconds', 'Time a batch took', ('kind', 'model'),
                                     buckets=SECONDS, **make)
    self.interests = prometheus.Counter('recjax_interests', 'Interests found, by who found them',
                                        ('source',), **make)
    self.reloads = prometheus.Counter('recjax_catalogue_reloads', 'Catalogues read anew',
                                      ('outcome',), **make)

  def request(self, scope, status, seconds):
    """One request. Paths that no route has are one label, so that labels stay few."""
    route = getattr(scope.get('route'), 'path', 'none')
    known = scope['method'] in ('GET', 'HEAD', 'POST', 'DELETE', 'PUT', 'PATCH', 'OPTIONS')
    method = scope['method'] if known else 'other'
    self.requests.labels(route, method, str(status)).inc()
    self.seconds.labels(route).observe(seconds)

  def batch(self, kind, model, size, seconds):
    """One batch of a model."""
    self.batches.labels(kind, model).observe(size)
    self.busy.labels(kind, model).observe(seconds)

  def gauge(self, name, text, value):
    """A figure that is read when somebody asks: value() -> number."""
    prometheus.Gauge(name, text, registry=self.registry).set_function(value)

  def page(self):
    """-> bytes in Prometheus' text format"""
    return prometheus.generate_latest(self.registry)
