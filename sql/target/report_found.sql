-- What a report found, a page. $1 report, $2 after which, $3 how many.
SELECT n, difference::text AS difference FROM {relay}.verify_difference WHERE report_id = $1 AND n > $2 ORDER BY n LIMIT $3
