-- name: receipts
select r.device, r.protocol, r.topic, r.has_event, r.confirmed_at::text
from momentum.receipts(%(user_id)s, %(event_id)s) as r
