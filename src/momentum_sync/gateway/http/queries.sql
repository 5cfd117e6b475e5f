-- name: receipts
select r.device, r.protocol, r.topic, r.has_event, extract(epoch from r.confirmed_at)::float8
from momentum.receipts(%(user_id)s, %(event_id)s) as r
