"""From records to what the papers print: tables, figures, the report."""
