-- What would have the application's writes fail, or events wrong, is an error before anything stands.
DO $guard$
DECLARE unfit record;
BEGIN
    FOR unfit IN
{unfit}
    LOOP
        RAISE EXCEPTION '%', unfit.what;
    END LOOP;
END $guard$;
