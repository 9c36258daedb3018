"""The interactive charts of the report's page: Bokeh models, one file a part of the page."""
