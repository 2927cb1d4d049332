"""The same replay on a real device, and the small model: everything here needs torch (extra `runtime`)."""

from traces.extras import refuse_what_is_missing
from traces.listing import refuse_unknown_module

refuse_unknown_module()
refuse_what_is_missing(__name__)
