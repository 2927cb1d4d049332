"""What runs came to, side by side: tables, figures, pages. Figures need pandas and plotly (extra `report`)."""

from traces.extras import refuse_what_is_missing
from traces.listing import refuse_unknown_module

refuse_unknown_module()
refuse_what_is_missing(__name__)
