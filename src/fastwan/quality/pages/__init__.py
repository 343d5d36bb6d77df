"""Reports that people look at: one page of HTML, and the same as Markdown, JUnit XML and JSON."""
